"""What may happen to frames without a viewer noticing: noise, more light, another size, a shift.

Features, slots and masks should hardly change under them; how much they do is measured in
`slotmatch.evaluation.constancy`.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

from slotmatch.settings import Disturbance, check_choice

__all__ = ["disturb"]

NOISE = 2 / 255
"""Standard deviation of the noise, in units of full brightness."""
BRIGHTNESS = 1.05


def disturb(frames: Tensor, kind: Disturbance, *, seed: int = 0) -> Tensor:
    """Frames (N,3,H,W) in [0, 1] after a disturbance, rounded to whole numbers of 255.

    ``"noise"`` adds Gaussian noise of 2 of 255, drawn from ``seed``; ``"brightness"`` multiplies by
    1.05; ``"half_size"`` halves the size, antialiased, and doubles it again, both bilinear;
    ``"shift"`` moves all by one pixel to the right.

    Raises:
        ValueError: an unknown kind.
    """
    check_choice("kind", kind, Disturbance)
    generator = torch.Generator().manual_seed(seed)
    changed = _KINDS[kind](frames, generator)
    return (255 * changed).round().clamp(0, 255) / 255


def _noise(frames: Tensor, generator: torch.Generator) -> Tensor:
    return frames + NOISE * torch.randn(frames.shape, generator=generator).to(frames)


def _half_size(frames: Tensor, _: torch.Generator) -> Tensor:
    height, width = frames.shape[-2:]
    half = F.interpolate(frames, (height // 2, width // 2), mode="bilinear", antialias=True)
    return F.interpolate(half, (height, width), mode="bilinear")


_KINDS: Mapping[str, Callable[[Tensor, torch.Generator], Tensor]] = MappingProxyType(
    {
        "noise": _noise,
        "brightness": lambda frames, _: BRIGHTNESS * frames,
        "half_size": _half_size,
        "shift": lambda frames, _: F.pad(frames, (1, 0, 0, 0), mode="replicate")[..., :-1],
    }
)
