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
