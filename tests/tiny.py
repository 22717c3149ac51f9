"""Models, tensors and results of a few numbers, which most test files start from."""

from typing import Any

import torch
from torch import Tensor

from slotmatch.model import ModelConfig

__all__ = ["normal", "result", "tiny"]


def tiny(backbone: str | None = None, image_size: int | None = None, **changes: Any) -> ModelConfig:
    """A config that reads features (T,9,6) unless a backbone is named."""
    sizes = {"n_slots": 4, "slot_dim": 8, "decoder_hidden": 8, "decoder_layers": 1, "n_heads": 2}
    shape = (9, 6) if backbone is None else None
    return ModelConfig(backbone, image_size, **{**sizes, "feature_shape": shape, **changes})


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal values in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def result(
    models: dict[str, Any], n_videos: int, dataset: str = "minimovi_a", **more: Any
) -> dict[str, Any]:
    """The content of a result file on the first test videos of a data set."""
    return {
        "config": {},
        "seeds": [0],
        "data": {
            "name": dataset,
            "version": 1,
            "split": "test",
            "ids": [f"{dataset}/test/{number:05d}" for number in range(n_videos)],
        },
        "models": models,
        "wall_seconds": 1.0,
        "environment": {"python": "3.11"},
        **more,
    }
