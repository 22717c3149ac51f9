"""What a model costs: its parameters, and the time from frames to masks."""

import time
from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from slotmatch.model import VideoSlotModel

__all__ = ["BLOCK", "count_parameters", "ms_per_frame"]

BLOCK = 24
"""Frames that are encoded and decoded at a time."""


def count_parameters(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameters of each part of a model and in all (``"total"``): how many, and how many train."""
    parts = {**dict(model.named_children()), "total": model}
    return {
        name: (
            sum(weight.numel() for weight in part.parameters()),
            sum(weight.numel() for weight in part.parameters() if weight.requires_grad),
        )
        for name, part in parts.items()
    }


def ms_per_frame(
    models: Mapping[str, VideoSlotModel], video: np.ndarray, *, repeats: int = 7
) -> dict[str, list[float]]:
    """Milliseconds a frame from RGB to soft masks, of every model in every repeat.

    The models take turns, so that whatever else the machine does meets all of them: quote medians,
    and for a ratio the median of the ratios of each turn. Before that each runs once unmeasured.
    The video is streamed in blocks of ``BLOCK`` frames. Backbone, slots and masks count; reading
    the video and enlarging masks to pixels do not.

    Args:
        models: by name, in evaluation mode, each where its weights are.
        video: uint8 (T,H,W,3).
        repeats: turns that are measured.

    Raises:
        ValueError: no models, a model without backbone, a video of another kind, or no repeats.
    """
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not len(video):
        raise ValueError(f"video must be uint8 (T,H,W,3), got {video.dtype} {video.shape}")
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    if bare := [name for name, model in models.items() if model.backbone is None]:
        raise ValueError(f"{', '.join(bare)} have no backbone: there are no frames to start from")
    if not models:
        raise ValueError("models is empty: give one or more by name")
    frames = rearrange(torch.from_numpy(video), "t h w c -> 1 t c h w")
    for model in models.values():
        _stream(model, frames)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            started = time.perf_counter()
            _stream(model, frames)
            times[name].append(1000 * (time.perf_counter() - started) / len(video))
    return times


@torch.inference_mode()
def _stream(model: VideoSlotModel, frames: Tensor) -> None:
    device = model.decoder.positions.device
    generator = torch.Generator().manual_seed(0)
    state = None
    for block in frames.split(BLOCK, dim=1):
        video = block.to(device).float() / 255
        output = model(video, reconstruct=False, state=state, generator=generator)
        state = output.state
    if device.type == "cuda":  # which returns before it is done
        torch.cuda.synchronize(device)
