"""A shared model, fetched from the Hugging Face hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

__all__ = ["HUB", "WEIGHTS", "check_repo_id", "fetch", "plain_errors"]

HUB = "hf://"
"""Start of the address of a model on the Hugging Face hub, as in ``hf://user/name@revision``."""
WEIGHTS = "model.safetensors"
"""Name of the one file that ``load`` needs of a shared model."""
ANSWER_TIMEOUT = 5.0
"""Seconds that the hub has for a first answer when a model is fetched."""


def fetch(address: str, *, endpoint: str | None = None) -> Path:
    """The weights' file of a shared model, from the hub or from its cache on this machine.

    ``address`` is ``"hf://user/name"`` or ``"hf://user/name@revision"``, with a branch, a tag or a
    commit. ``slotmatch.model.load`` takes it too. A commit that was fetched before needs no
    network.

    Raises:
        ValueError: another kind of address.
        FileNotFoundError: no such repository, revision or model.
        PermissionError: it may not be read with the token of ``hf auth login`` or ``HF_TOKEN``.
        ConnectionError: the hub does not answer, and no copy is in the cache.
    """
    repo_id, _, revision = address.removeprefix(HUB).partition("@")
    check_repo_id(repo_id)
    endpoint = endpoint or huggingface_hub.constants.ENDPOINT
    cached = huggingface_hub.try_to_load_from_cache(repo_id, WEIGHTS, revision=revision or None)
    with plain_errors(repo_id, endpoint):
        if not isinstance(cached, str):
            # The client itself retries for half a minute; one short question tells.
            huggingface_hub.get_session().head(endpoint, timeout=ANSWER_TIMEOUT)
        return Path(
            huggingface_hub.hf_hub_download(
                repo_id,
                WEIGHTS,
                revision=revision or None,
                endpoint=endpoint,
                etag_timeout=ANSWER_TIMEOUT,
            )
        )


def check_repo_id(repo_id: str) -> None:
    """Refuse, with a ValueError, what cannot be ``user/name``."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id) is None:
        raise ValueError(f"{repo_id!r} is not the name of a model on the hub, user/name")


@contextmanager
def plain_errors(repo_id: str, endpoint: str) -> Iterator[None]:
    """The hub client's errors, a page each, in one sentence that says what to do."""
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a name that the hub allows: {error}") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{repo_id} on {endpoint} has no such revision") from error
    except LocalEntryNotFoundError as error:
        raise _no_answer(repo_id, endpoint) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} on {endpoint} holds no {WEIGHTS}: it was not shared by slotmatch"
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{repo_id} is not on {endpoint}, or is private: check its name, and log in with "
            "`hf auth login` if it is yours"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"{endpoint} refuses access to {repo_id} ({status}): the token is wrong, expired "
                "or may not do this; make another at https://huggingface.co/settings/tokens"
            ) from error
        raise ConnectionError(
            f"{endpoint} could not do it for {repo_id} ({status}: "
            f"{error.server_message or 'no reason given'})"
        ) from error
    except (HTTPError, huggingface_hub.errors.OfflineModeIsEnabled) as error:
        raise _no_answer(repo_id, endpoint) from error


def _no_answer(repo_id: str, endpoint: str) -> ConnectionError:
    return ConnectionError(
        f"{endpoint} does not answer for {repo_id}: check the network and HF_HUB_OFFLINE, or carry "
        "a folder written by `python -m slotmatch share` over and load its model.safetensors"
    )
