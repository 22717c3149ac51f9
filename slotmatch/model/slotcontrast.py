"""Reading the checkpoints that SlotContrast's authors released: their names and sizes in our words.

Only tensors are read; see `slotmatch.model.from_slotcontrast` for the model made of them.
"""

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slotmatch.data.files import some
from slotmatch.model.network import VideoSlotModel, fill
from slotmatch.model.presets import PRESETS, ModelConfig
from slotmatch.tensors import UNREADABLE

__all__ = [
    "FINAL_NORM",
    "RELEASED",
    "Released",
    "describe",
    "from_slotcontrast",
    "read_tensors",
    "released_name",
    "translate",
]

RELEASED = ".ckpt"
"""Suffix of the files that SlotContrast's authors released."""
FINAL_NORM = "network.norm."
"""A ViT's last layer comes after the features, so it does not count; released files lack it."""
DECODER = "decoder.layers."
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
    "decoder.module.mlp.layers.": DECODER,
}
"""Released name -> name here; the first that fits counts."""
VITS = {(384, 12): "dinov2_vits14", (768, 12): "dinov2_vitb14"}
"""Backbones known by width and number of blocks."""
PATCH_SIDE = 14
TRAINED_ON = ("movi_c", "movi_e", "ytvis2021")
"""Data sets of the released checkpoints, by the names of our presets."""


@dataclass(frozen=True)
class Released:
    """A released checkpoint: the config its sizes imply, and its tensors by our names.

    A tensor that has no name here keeps its own. ``unused`` holds the released names of a backbone
    that is not among those we can build.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    unused: tuple[str, ...]


def read_tensors(source: Mapping[str, Any] | str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights of a Lightning checkpoint or a bare state dict, from memory or a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds objects that could run code, none of which is
            loaded; or an entry is not a tensor.
    """
    where = "" if isinstance(source, Mapping) else f"{source}: "
    if isinstance(source, Mapping):
        content: Any = source
    else:
        with Path(source).open("rb") as file:
            try:
                content = torch.load(file, map_location="cpu", weights_only=True)
            except UNREADABLE as error:
                raise ValueError(_refusal(source, error)) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{where}expected a state dict, or a dict with one under 'state_dict'")
    foreign = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        named = some(foreign, 10)
        raise ValueError(f"{where}these entries of the state dict are not tensors: {named}")
    return dict(content)


def translate(released: Mapping[str, Tensor], *, n_heads: int) -> Released:
    """Sizes and names of a released model, teacher of any size, with or without its backbone.

    Tensors that do not belong are handed on, for whoever fills a model to name them all at once.

    Raises:
        ValueError: the tensors that give the sizes are missing or have no rows, or hidden layers
            are of unequal width.
    """
    names = {name: _our_name(name) for name in released}
    tensors = {names[name]: tensor for name, tensor in released.items()}
    sized = ("initial_slots.slots", "transform.0.weight", "decoder.positions")
    missing = [name for name in (*sized, "decoder.layers.0.weight") if name not in tensors]
    if missing:
        foreign = [name for name, ours in names.items() if name == ours]
        others = f"; these do not belong: {some(foreign, 10)}" if foreign else ""
        raise ValueError(
            "not a SlotContrast model: tensors are missing that give its sizes, "
            f"{some([released_name(name) for name in missing], 10)}{others}"
        )
    for name in ("initial_slots.slots", "decoder.positions"):
        if tensors[name].ndim < 2:
            shape = tuple(tensors[name].shape)
            raise ValueError(f"{released_name(name)} must hold rows of slot width, not {shape}")
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
        unused = tuple(name for name, ours in names.items() if ours.startswith("backbone."))
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


def released_name(name: str) -> str:
    """What a tensor of our models is called in a released checkpoint."""
    for theirs, ours in PREFIXES.items():
        if name.startswith(ours):
            return theirs + _renumbered(name.removeprefix(ours), ours, lambda index: 2 * index)
    return name


def describe(config: ModelConfig) -> str:
    """What an imported model is, with the data set of the release that has exactly these sizes."""
    twins = [
        name for name in TRAINED_ON if config in (PRESETS[name].teacher, PRESETS[name].student)
    ]
    origin = f"the sizes of SlotContrast's {twins[0]} model" if twins else "sizes of no release"
    encoder = (
        f"features {config.n_patches} x {config.feature_dim} without a backbone"
        if config.backbone is None
        else f"{config.backbone} at {config.image_size} px"
    )
    return f"{origin}: {config.n_slots} slots of width {config.slot_dim} over {encoder}"


def _refusal(source: object, error: Exception) -> str:
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code is None:
        return f"{source} is not a checkpoint or is cut short: get it again"
    return (
        f"{source} holds more than tensors and plain values ({code[1]}), which could run code and "
        "is not loaded: ask its author for the state_dict alone, saved with torch.save"
    )


def _our_name(name: str) -> str:
    """Our name of a released tensor; a name that is not among those released stays as it is."""
    for theirs, ours in PREFIXES.items():
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            if ours == DECODER and not re.match(r"\d*[02468]\.", rest):
                return name
            return ours + _renumbered(rest, ours, lambda index: index // 2)
    return name


def _renumbered(rest: str, ours: str, change: Callable[[int], int]) -> str:
    """The released decoder counts the ReLUs between its layers, ours does not."""
    if ours != DECODER:
        return rest
    index, _, kind = rest.partition(".")
    return f"{change(int(index))}.{kind}"


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


def from_slotcontrast(
    state_dict_or_path: Mapping[str, Any] | str | os.PathLike[str], *, n_heads: int = 4
) -> VideoSlotModel:
    """The model in a checkpoint released by SlotContrast's authors, in evaluation mode.

    Takes a ``.ckpt`` file, of which only tensors are read, its content, or the bare state dict. All
    sizes come from the tensors except the number of the predictor's heads. A backbone among them is
    used when it is DINOv2 ViT-S/14 or ViT-B/14, without any download; otherwise the model runs from
    features. Numbers keep their precision.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is damaged or holds objects besides tensors, or not such a
            checkpoint; the message lists what is missing, does not belong or has another shape.
    """
    released = translate(read_tensors(state_dict_or_path), n_heads=n_heads)
    if released.unused:
        warnings.warn(
            f"{len(released.unused)} tensors of a backbone other than ViT-S/14 or ViT-B/14 are not "
            f"used, the model runs from features only: {released.unused[0]}, ...",
            stacklevel=2,
        )
    model = VideoSlotModel(released.config, pretrained=False)
    fill(
        model,
        released.tensors,
        "the checkpoint",
        may_lack=(f"backbone.{FINAL_NORM}",),
        called=released_name,
    )
    if model.backbone is not None:
        model.backbone.pretrained = True
    return model.eval()
