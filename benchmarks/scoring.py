"""(d) Metrics of one video, against the straightforward implementation with a mask per label."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks import onehot
from benchmarks.comparison import Comparison, Settings
from slotmatch import metrics
from slotmatch.profiling import milliseconds, peak_memory, take_turns

__all__ = ["measure"]

WAYS = {"one mask per label": onehot.video_metrics, "slotmatch.metrics": metrics.video_metrics}
N_OBJECTS, N_SLOTS = 10, 15


def measure(settings: Settings) -> Iterator[Comparison]:
    """One comparison, after both gave the same scores.

    Raises:
        ValueError: they did not.
    """
    n_frames, side = (3, 48) if settings.quick else (24, 336)
    maps = regions(n_frames, side, N_OBJECTS + 1, seed=0), regions(n_frames, side, N_SLOTS, seed=1)
    expected, found = (score(*maps) for score in WAYS.values())
    for name, value in expected.items():
        if not math.isclose(found[name], value, rel_tol=1e-6, abs_tol=1e-9):
            raise ValueError(f"{name} is {found[name]}, but {value} with a mask per label")
    jobs = {way: prepare(way, *maps) for way in WAYS}
    yield Comparison(
        title=f"(d) metrics, {n_frames} frames of {side} x {side}, {N_SLOTS} slots",
        unit="ms per video",
        baseline="one mask per label",
        turns=take_turns(jobs, repeats=settings.repeats),
        memory={way: peak_memory(prepare, way, *maps) for way in WAYS},
    )


def prepare(way: str, true: np.ndarray, pred: np.ndarray) -> Callable[[], dict[str, float]]:
    """The job that scores a video and says how long it took."""
    return lambda: {"total": milliseconds(lambda: WAYS[way](true, pred))}


def regions(n_frames: int, side: int, n_labels: int, *, seed: int) -> np.ndarray:
    """Label maps (T,H,W) with regions of a few dozen pixels that move slowly, uint8."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, n_labels, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, (n_frames, side, side), mode="trilinear")
    return smooth[0].argmax(0).numpy().astype(np.uint8)
