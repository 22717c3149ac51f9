"""A model as one safetensors file with its config inside: written, and found by name or path."""

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from slotmatch import backbones, paths
from slotmatch.backbones import weights_checksum
from slotmatch.model.hub import HUB, fetch
from slotmatch.model.network import VideoSlotModel, fill
from slotmatch.model.presets import ModelConfig
from slotmatch.model.slotcontrast import FINAL_NORM, RELEASED, describe, from_slotcontrast
from slotmatch.settings import Role, choices
from slotmatch.tensors import read_tensors, write_tensors

__all__ = ["FILE_FORMAT", "load", "save"]

FILE_FORMAT = "slotmatch 1"

_log = logging.getLogger(__name__)


def save(
    model: VideoSlotModel, path: str | os.PathLike[str], *, include_backbone: bool = False
) -> None:
    """Write a model as one safetensors file with its config inside; ``load`` reads it back.

    The frozen backbone's weights are left out, since ``backbones.build`` has them, but their
    checksum is kept and compared when loading. ``include_backbone=True`` puts them in: needed for
    an untrained backbone, and useful where they could not be had again. Equal models give equal
    bytes, so a file's checksum is its model's.
    """
    tensors = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if include_backbone or not name.startswith("backbone.")
    }
    header = {
        "format": FILE_FORMAT,
        "config": json.dumps(asdict(model.config)),
        "backbone_sha256": "" if model.backbone is None else _checksum(model.backbone),
        "backbone_pretrained": json.dumps(model.backbone is not None and model.backbone.pretrained),
    }
    with paths.atomic(path) as temporary:
        write_tensors(tensors, temporary, header)
        _sort_header(temporary)


def load(name_or_path: str | os.PathLike[str]) -> VideoSlotModel:
    """A model that ``save`` wrote, on the CPU and in evaluation mode.

    ``"mini-teacher"`` and ``"mini-student"`` come with the package.
    ``"hf://user/name"`` is a model that was shared on the Hugging Face hub
    (`slotmatch.sharing.push.push_to_hub`), ``"hf://user/name@revision"`` that branch, tag or commit
    of it. A file whose name ends in ``.ckpt`` is read by `from_slotcontrast` with the four heads of
    every release; what it is taken for is logged. No code comes out of any of them.

    Nothing is downloaded when the file holds the backbone.

    Raises:
        FileNotFoundError: neither a name nor a file, or nothing of that name on the hub.
        ConnectionError: the hub does not answer, and no copy is in its cache.
        ValueError: a file that is cut short, not one of ours, whose tensors do not fit its
            config, or that was trained on other backbone weights than those at hand.
        RuntimeError: the file has no backbone, and its weights cannot be had.
    """
    path = _resolve(name_or_path)
    if path.suffix == RELEASED:
        model = from_slotcontrast(path)
        # A warning, since the number of heads is assumed: no tensor tells it.
        _log.warning("%s has %s; its predictor gets 4 heads", path.name, describe(model.config))
        return model
    try:
        tensors, header = read_tensors(path)
    except ValueError as error:
        raise ValueError(
            f"{error}; a model of ours ends in .safetensors, as the one beside a run's "
            f"checkpoint.pt, one that SlotContrast released in {RELEASED}"
        ) from error
    if header.get("format") != FILE_FORMAT:
        raise ValueError(
            f"{path} was not written by slotmatch.model.save: its format is "
            f"{header.get('format')!r}, not {FILE_FORMAT!r}"
        )
    try:
        config = ModelConfig(**json.loads(header["config"]))
        expected = header["backbone_sha256"]
        trained = bool(json.loads(header["backbone_pretrained"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} has a header this version cannot read: {error}") from error
    complete = any(name.startswith("backbone.") for name in tensors)
    model = VideoSlotModel(config, pretrained=not complete)
    fill(model, tensors, str(path), may_lack=() if complete else ("backbone.",))
    if model.backbone is not None:
        found = _checksum(model.backbone)
        if found != expected:
            raise ValueError(
                f"{path} was trained on {config.backbone} weights with SHA-256 "
                f"{expected}, but those at hand have {found}"
            )
        model.backbone.pretrained = trained
    return model.eval()


def _resolve(name_or_path: str | os.PathLike[str]) -> Path:
    if str(name_or_path).startswith(HUB):
        return fetch(str(name_or_path))
    path = Path(name_or_path)
    if path.is_file():
        return path
    files = sorted(paths.WEIGHTS.glob("*.safetensors"))
    names = {file.stem: file for file in files if file.stem.endswith(choices(Role))}
    if str(name_or_path) in names:
        return names[str(name_or_path)]
    raise FileNotFoundError(
        f"{str(name_or_path)!r} is neither a file nor a model of the package: "
        f"{', '.join(names) or 'none is installed'}; {HUB}user/name is one on the hub"
    )


def _checksum(backbone: backbones.Backbone) -> str:
    return weights_checksum(backbone, skip=(FINAL_NORM,))


def _sort_header(path: Path) -> None:
    """Put the metadata of a safetensors file in order, which its writer shuffles at every call."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size  # the same characters; the format pads them with spaces
        file.seek(8)
        file.write(text.ljust(size))
