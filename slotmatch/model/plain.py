"""The model as it is usually written: the reference for the exactness and the cost of the fast one.

``slotmatch.model.modules.MLPDecoder`` is rearranged so that it does less work for the same result.
Here is what it was rearranged from, with the same parameters.
"""

import copy

import torch
from einops import rearrange
from torch import Tensor

from slotmatch.model.modules import MLPDecoder
from slotmatch.model.network import VideoSlotModel
from slotmatch.precision import full_precision

__all__ = ["PlainDecoder", "as_written"]


class PlainDecoder(MLPDecoder):
    """The decoder word for word: every slot at every patch through every layer.

    It always reconstructs, whether or not the reconstruction is asked for.
    """

    def forward(
        self, slots: Tensor, *, patches: Tensor | None = None, reconstruct: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Masks (B,K,P) and the reconstruction (B,P,F) of slots (B,K,D), as in ``MLPDecoder``."""
        positions = self.positions if patches is None else self.positions[patches]
        hidden = rearrange(slots, "b k d -> b k 1 d") + positions
        *inner, last = self.layers
        for layer in inner:
            hidden = torch.relu(layer(hidden))
        features, logits = last(hidden).split([self.feature_dim, 1], dim=-1)
        masks = full_precision(logits).softmax(dim=1)
        reconstruction = (masks * features).sum(dim=1)
        return masks.squeeze(-1), reconstruction if reconstruct else None


def as_written(model: VideoSlotModel) -> VideoSlotModel:
    """The same model with the plain decoder; both share their parameters, so training one is both.

    Results are equal up to rounding, gradients included; time and memory are not.
    """
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    plain = copy.deepcopy(model, shared)
    plain.decoder.__class__ = PlainDecoder
    return plain
