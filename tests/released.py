"""The released checkpoints' tensor names, spelt out from their layout and not from our reader."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

HEADS = {
    "initializer.": "initializer.",
    "output_transform.": "encoder.module.output_transform.",
    "corrector.": "processor.module.corrector.",
    "predictor.": "processor.module.predictor.",
    "decoder.": "decoder.module.",
}


def released_heads(oracles: Mapping[str, np.ndarray], group: str = "model.w.") -> dict[str, Tensor]:
    """The oracles' recurrent model (K=5, D=8, P=9, F=6, 4 heads), as a release would hold it."""
    tensors = {}
    for key in oracles:
        if key.startswith(group):
            name = key.removeprefix(group)
            ours = next(start for start in HEADS if name.startswith(start))
            tensors[HEADS[ours] + name.removeprefix(ours)] = torch.from_numpy(oracles[key])
    return tensors


RELEASES = {
    "movi_c.ckpt": {"slots": 11, "width": 64, "features": 384, "patches": 24 * 24},
    "movi_e.ckpt": {"slots": 15, "width": 128, "features": 768, "patches": 24 * 24},
    "ytvis.ckpt": {"slots": 7, "width": 64, "features": 768, "patches": 37 * 37},
}
"""The released files and the sizes of their models."""


def released_shapes(
    slots: int, width: int, features: int, patches: int
) -> dict[str, tuple[int, ...]]:
    """Every tensor of a release in the order of its file, with its shape."""
    d, f = width, features
    vit = "encoder.module.backbone.model."
    shapes: dict[str, tuple[int, ...]] = {
        "initializer.slots": (1, slots, d),
        f"{vit}cls_token": (1, 1, f),
        f"{vit}pos_embed": (1, 1 + 37 * 37, f),
        f"{vit}patch_embed.proj.weight": (f, 3, 14, 14),
        f"{vit}patch_embed.proj.bias": (f,),
    }
    for i in range(12):
        block = f"{vit}blocks.{i}."
        shapes |= norm(f"{block}norm1", f)
        shapes |= linear(f"{block}attn.qkv", f, 3 * f)
        shapes |= linear(f"{block}attn.proj", f, f)
        shapes[f"{block}ls1.gamma"] = (f,)
        shapes |= norm(f"{block}norm2", f)
        shapes |= linear(f"{block}mlp.fc1", f, 4 * f)
        shapes |= linear(f"{block}mlp.fc2", 4 * f, f)
        shapes[f"{block}ls2.gamma"] = (f,)
    transform = "encoder.module.output_transform.layers."
    shapes |= norm(f"{transform}0", f)
    shapes |= linear(f"{transform}1", f, 2 * f)
    shapes |= linear(f"{transform}3", 2 * f, d)
    corrector = "processor.module.corrector."
    for name in ("to_k", "to_v", "to_q"):
        shapes[f"{corrector}{name}.weight"] = (d, d)
    shapes[f"{corrector}gru.weight_ih"] = shapes[f"{corrector}gru.weight_hh"] = (3 * d, d)
    shapes[f"{corrector}gru.bias_ih"] = shapes[f"{corrector}gru.bias_hh"] = (3 * d,)
    shapes |= norm(f"{corrector}mlp.layers.0", d)
    shapes |= linear(f"{corrector}mlp.layers.1", d, 4 * d)
    shapes |= linear(f"{corrector}mlp.layers.3", 4 * d, d)
    shapes |= norm(f"{corrector}norm_features", d)
    shapes |= norm(f"{corrector}norm_slots", d)
    predictor = "processor.module.predictor.blocks.0."
    shapes |= linear(f"{predictor}self_attn.qkv", d, 3 * d)
    shapes |= linear(f"{predictor}self_attn.out_proj", d, d)
    shapes |= linear(f"{predictor}linear1", d, 4 * d)
    shapes |= linear(f"{predictor}linear2", 4 * d, d)
    shapes |= norm(f"{predictor}norm1", d)
    shapes |= norm(f"{predictor}norm2", d)
    shapes["decoder.module.pos_emb"] = (1, 1, patches, d)
    for index, (inputs, outputs) in enumerate(
        [(d, 1024), (1024, 1024), (1024, 1024), (1024, f + 1)]
    ):
        shapes |= linear(f"decoder.module.mlp.layers.{2 * index}", inputs, outputs)
    return shapes


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
