"""The model that trains with the heads its loss needs, and what a model makes of a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slotmatch.model import VideoSlotModel
from slotmatch.precision import full_precision
from slotmatch.training.recipe import TrainConfig

__all__ = ["PROJECTED", "Student", "View"]

PROJECTED = frozenset({"features", "reconstructions"})
"""Added losses with a linear projection to the width of the teacher's features."""


@dataclass(frozen=True)
class View:
    """What a model makes of a batch: ``features`` (B,T,P,F), ``slots`` (B,T,K,D), ``attention``.

    ``masks`` (B,T,K,P) and ``reconstruction`` (B,T,P,F) of the step's patches are None where the
    step does not decode.
    """

    features: Tensor
    slots: Tensor
    attention: Tensor
    masks: Any
    reconstruction: Any


class Student(nn.Module):
    """The model that trains, and the heads of some terms, which are thrown away afterwards.

    A teacher to be trains in the same way, with no teacher of its own.
    """

    def __init__(
        self, model: VideoSlotModel, config: TrainConfig, teacher: VideoSlotModel | None = None
    ) -> None:
        super().__init__()
        self.model = model
        own = model.config
        widths = {"attention": (own.slot_dim, own.feature_dim)} if config.attention_weight else {}
        if teacher is not None:
            inputs = {"features": own.slot_dim, "reconstructions": own.feature_dim}
            widths |= {
                name: (inputs[name], teacher.config.feature_dim)
                for name in sorted(PROJECTED & config.added.keys())
            }
        self.heads = nn.ModuleDict()
        for name, (width, wanted) in widths.items():
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(config.seed)
                self.heads[name] = nn.Linear(width, wanted)
        self.heads.to(model.decoder.positions)

    def project(self, head: str, tensor: Tensor) -> Tensor:
        """What a head makes of a tensor, in single precision or better."""
        projected: Tensor = self.heads[head](full_precision(tensor))
        return projected
