"""Reading the checkpoints that SlotContrast's authors released: their names and sizes in our words.

Only tensors are read; see `slotmatch.model.from_slotcontrast` for the model made of them.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slotmatch.presets import ModelConfig

__all__ = ["Released", "read_tensors", "translate"]

PREFIXES = {
    "initializer.": "initial_slots.",
    "encoder.module.backbone.model.": "backbone.network.",
    "encoder.module.output_transform.layers.": "transform.",
    "processor.module.corrector.mlp.layers.": "slot_attention.mlp.",
    "processor.module.corrector.": "slot_attention.",
    "processor.module.predictor.blocks.0.norm1.": "predictor.norm_attention.",
    "processor.module.predictor.blocks.0.self_attn.qkv.": "predictor.to_qkv.",
    "processor.module.predictor.blocks.0.self_attn.out_proj.": "predictor.to_out.",
    "processor.module.predictor.blocks.0.norm2.": "predictor.norm_mlp.",
    "processor.module.predictor.blocks.0.linear1.": "predictor.mlp.0.",
    "processor.module.predictor.blocks.0.linear2.": "predictor.mlp.2.",
    "decoder.module.pos_emb": "decoder.positions",
    "decoder.module.mlp.layers.": "decoder.layers.",
}
"""Released name -> name here; the first that fits counts."""
VITS = {(384, 12): "dinov2_vits14", (768, 12): "dinov2_vitb14"}
"""Backbones known by width and number of blocks."""
PATCH_SIDE = 14
DAMAGED = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, OSError)
"""What torch raises for files that it cannot or must not read."""


@dataclass(frozen=True)
class Released:
    """A released checkpoint: the config its sizes imply, and its tensors by our names.

    ``unused`` holds the released names of a backbone that is not among those we can build.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    unused: tuple[str, ...]


def read_tensors(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of a Lightning checkpoint or a bare state dict, from memory or a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or holds other objects, or an entry is not a tensor.
    """
    if isinstance(source, Mapping):
        content: Any = source
    else:
        with Path(source).open("rb") as file:
            try:
                content = torch.load(file, map_location="cpu", weights_only=True)
            except DAMAGED as error:
                raise ValueError(
                    f"{source} is not a checkpoint, is cut short, or holds more than tensors and "
                    "plain values, which are not loaded for safety: save its state_dict alone"
                ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError("expected a state dict, or a dict with one under 'state_dict'")
    foreign = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise ValueError(f"these entries of the state dict are not tensors: {_listed(foreign)}")
    return dict(content)


def translate(released: Mapping[str, Tensor], *, n_heads: int) -> Released:
    """Sizes and names of a released model, teacher of any size, with or without its backbone.

    Raises:
        ValueError: names that do not belong to a SlotContrast model, missing tensors that give the
            sizes, or hidden layers of unequal width.
    """
    names = {name: _our_name(name) for name in released}
    unexpected = [name for name, ours in names.items() if ours is None]
    if unexpected:
        raise ValueError(f"not tensors of a SlotContrast model: {_listed(unexpected)}")
    tensors = {ours: released[name] for name, ours in names.items() if ours is not None}
    sized = ("initial_slots.slots", "transform.0.weight", "decoder.positions")
    missing = [name for name in (*sized, "decoder.layers.0.weight") if name not in tensors]
    if missing:
        raise ValueError(f"tensors missing that give the model's sizes, as named here: {missing}")
    for name in ("initial_slots.slots", "decoder.positions"):
        tensors[name] = tensors[name].flatten(0, -2)
    (n_slots, slot_dim), n_patches = tensors[sized[0]].shape, tensors[sized[2]].shape[0]
    widths = [
        len(tensor)
        for name, tensor in tensors.items()
        if re.fullmatch(r"decoder\.layers\.\d+\.weight", name)
    ]
    hidden = {*widths[:-1]}
    if len(hidden) != 1:
        raise ValueError(f"hidden layers of the decoder must have one width, got {widths[:-1]}")
    vit = _vit(tensors)
    unused: tuple[str, ...] = ()
    if vit is None:
        unused = tuple(name for name, ours in names.items() if (ours or "").startswith("backbone."))
        tensors = {name: t for name, t in tensors.items() if not name.startswith("backbone.")}
    config = ModelConfig(
        backbone=vit,
        image_size=None if vit is None else round(n_patches**0.5) * PATCH_SIDE,
        feature_shape=(n_patches, len(tensors[sized[1]])) if vit is None else None,
        n_slots=n_slots,
        slot_dim=slot_dim,
        decoder_hidden=hidden.pop(),
        decoder_layers=len(widths) - 1,
        n_heads=n_heads,
    )
    return Released(config, tensors, unused)


def _our_name(name: str) -> str | None:
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            if ours == "decoder.layers.":  # theirs counts the ReLUs between the layers
                index, _, kind = rest.partition(".")
                if not index.isdigit() or int(index) % 2:
                    return None
                rest = f"{int(index) // 2}.{kind}"
            return ours + rest
    return None


def _vit(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the backbone whose tensors these are; None if it is absent or of another size."""
    blocks = {
        match[1]
        for name in tensors
        if (match := re.match(r"backbone\.network\.blocks\.(\d+)\.", name))
    }
    kernel = tensors.get("backbone.network.patch_embed.proj.weight")
    if kernel is None or kernel.shape[1:] != (3, PATCH_SIDE, PATCH_SIDE):
        return None
    return VITS.get((kernel.shape[0], len(blocks)))


def _listed(names: list[str]) -> str:
    return ", ".join(map(str, names[:10])) + (
        f" and {len(names) - 10} more" if len(names) > 10 else ""
    )
