"""The model that trains with the heads its loss needs, and what a model makes of a batch."""

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from slotmatch.model import VideoSlotModel
from slotmatch.precision import full_precision
from slotmatch.training.recipe import TrainConfig

__all__ = ["PROJECTED", "Student", "View"]

PROJECTED = frozenset({"features", "reconstructions"})
"""Added losses with a linear projection to the width of the teacher's features."""


@dataclass(frozen=True)
class View:
    """What a model makes of a batch: ``features`` (B,T,P,F), ``slots`` (B,T,K,D), ``attention``.

    ``masks`` (B,T,K,N) and ``reconstruction`` (B,T,N,F) are of the step's N ``patches``, None for
    all, and None themselves where the step does not decode. So is ``similarity`` (B,T,N,P) where
    no loss asks for it (`Student.decode`).
    """

    features: Tensor
    patches: Tensor | None
    slots: Tensor
    attention: Tensor
    masks: Any = None
    reconstruction: Any = None
    similarity: Any = None


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
        if "temporal_similarity" in config.added:
            widths["temporal_similarity"] = (own.decoder_hidden, own.n_patches)
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

    def decode(
        self, slots: Tensor, *, patches: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Masks (B,T,K,N), reconstruction (B,T,N,F) and predicted similarities (B,T,N,P).

        The last, logits for `slotmatch.losses.temporal_similarity`, are None without that loss.
        They are P further outputs of the decoder, mixed by the same masks: its last layer has the
        head's rows while it decodes here, and is as it was afterwards.
        """
        if "temporal_similarity" not in self.heads:
            return *self.model.decode(slots, patches=patches), None
        decoder, head = self.model.decoder, self.heads["temporal_similarity"]
        last = len(decoder.layers) - 1
        wider = {  # rows of the features, of the similarities, of the masks
            f"layers.{last}.{name}": torch.cat([rows[:-1], head.get_parameter(name), rows[-1:]])
            for name, rows in decoder.layers[last].named_parameters()
        }
        flat = rearrange(slots, "b t k d -> (b t) k d")
        decoded = functional_call(decoder, wider, (flat,), {"patches": patches})
        masks, outputs = (one.unflatten(0, slots.shape[:2]) for one in decoded)
        reconstruction, similarity = outputs.split([decoder.feature_dim, head.out_features], dim=-1)
        return masks, reconstruction, similarity
