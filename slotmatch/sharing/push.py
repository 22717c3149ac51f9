"""A model put on the Hugging Face hub."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import CommitOperationAdd, HfApi

from slotmatch.model import VideoSlotModel
from slotmatch.model.hub import HUB, WEIGHTS, check_repo_id, plain_errors
from slotmatch.sharing.card import CARD, CONFIG, write_folder

__all__ = ["push_to_hub"]


def push_to_hub(
    model: VideoSlotModel,
    repo_id: str,
    *,
    about: str = "",
    results: Mapping[str, Any] | None = None,
    entry: str | None = None,
    licence: str = "mit",
    include_backbone: bool = False,
    private: bool = False,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Put a model on the Hugging Face hub, in one commit, and return the address to ``load``.

    The address names the commit, ``"hf://user/name@revision"``: it will always be this very model.
    A repository that is not there yet is made, ``private`` or not; in one that is, the three files
    of `write_folder` are replaced.

    Args:
        model: what is shared.
        repo_id: ``user/name``, also the card's title.
        about: see `model_card`, also for ``results``, ``entry`` and ``licence``.
        results: scores and training settings.
        entry: which of the models in there this is.
        licence: of the weights.
        include_backbone: see `slotmatch.model.save`.
        private: only for you and whom you invite; of no effect on a repository that exists.
        token: one that may write; without it that of ``hf auth login`` or of the environment
            variable ``HF_TOKEN``.
        endpoint: address of the hub, if it is not the public one.

    Raises:
        ValueError: not a ``user/name``, or results that are not of this model.
        PermissionError: no token, or one that may not write there.
        ConnectionError: the hub does not answer or cannot do it.
    """
    check_repo_id(repo_id)
    token = token or huggingface_hub.get_token()
    if not token:
        raise PermissionError(
            f"no token to push {repo_id} with: make one that may write at "
            "https://huggingface.co/settings/tokens, then run `hf auth login` or set HF_TOKEN"
        )
    api = HfApi(endpoint=endpoint, token=token)
    with tempfile.TemporaryDirectory() as folder, plain_errors(repo_id, api.endpoint):
        write_folder(
            model,
            folder,
            title=repo_id,
            address=f"{HUB}{repo_id}",
            about=about,
            results=results,
            entry=entry,
            licence=licence,
            include_backbone=include_backbone,
        )
        api.create_repo(repo_id, private=private, exist_ok=True)
        files = [CommitOperationAdd(name, Path(folder) / name) for name in (WEIGHTS, CONFIG, CARD)]
        commit = api.create_commit(repo_id, files, commit_message="Upload with slotmatch")
    return f"{HUB}{repo_id}@{commit.oid}"
