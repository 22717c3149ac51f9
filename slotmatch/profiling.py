"""What a model costs: its parameters, its arithmetic, and the time and memory from frames to masks.

Times of different models are only comparable when the models take turns: see ``take_turns``.
"""

import copy
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slotmatch.data.preprocessing import unit_floats
from slotmatch.model import ModelConfig, VideoSlotModel
from slotmatch.precision import autocast, check_precision
from slotmatch.settings import Precision

__all__ = [
    "PeakMemory",
    "Ratio",
    "Segmenting",
    "count_flops",
    "count_parameters",
    "milliseconds",
    "ms_per_frame",
    "now",
    "peak_memory",
    "segmenting",
    "take_turns",
    "time_parts",
    "times_faster",
    "without_memory",
]

T = TypeVar("T")

UNCOUNTED = {torch.ops.aten.mv: lambda matrix, vector, **_: 2 * math.prod(matrix)}
"""The product torch's counter does not know: matrix by vector, from their shapes."""


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


def without_memory(model: VideoSlotModel | ModelConfig) -> VideoSlotModel:
    """A model, or the untrained one of a config, on torch's meta device: shapes, no numbers.

    What a model of any size costs can be counted on it at once; it computes nothing.
    """
    if isinstance(model, ModelConfig):
        with torch.device("meta"):
            return VideoSlotModel(model, pretrained=False).to("meta")
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor.to("meta") for tensor in tensors})


def count_flops(
    model: VideoSlotModel | ModelConfig, *, reconstruct: bool = True, decode: bool = True
) -> dict[str, int]:
    """Floating-point operations a frame of each part of a model and in all (``"total"``).

    A multiplication with its addition counts as two. Counted are matrix products (attention is two
    of them) and convolutions, by torch's FlopCounterMode, in a frame that is not the first of its
    video. Nothing is computed: only shapes pass through a model `without_memory`.

    Args:
        model: a model, or the config of one: then the fast model.
            ``slotmatch.model.plain.as_written`` gives the model whose counts papers quote.
        reconstruct: False counts a decoder that is asked for masks alone.
        decode: False leaves the decoder out, as for masks that are slot attention's.
    """
    model = without_memory(model)
    config, backbone = model.config, model.backbone
    like = model.decoder.positions
    slots = like.new_empty(1, config.n_slots, config.slot_dim)
    features = like.new_empty(1, config.n_patches, config.feature_dim)
    transformed = like.new_empty(1, config.n_patches, config.slot_dim)
    runs: dict[str, Callable[[], object]] = {
        "transform": lambda: model.transform(features),
        "slot_attention": lambda: model.slot_attention(slots, transformed, config.later_iterations),
        "predictor": lambda: model.predictor(slots),
    }
    if backbone is not None:
        images = like.new_empty(1, 3, backbone.image_size, backbone.image_size)
        runs = {"backbone": lambda: backbone.patch_features(images), **runs}
    if decode:
        runs["decoder"] = lambda: model.decoder(slots, reconstruct=reconstruct)
    counts = {}
    for part, run in runs.items():
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
            run()
        counts[part] = counter.get_total_flops()
    return {**counts, "total": sum(counts.values())}


@dataclass(frozen=True)
class Segmenting:
    """What masks alone cost: the parameters they need, and GFLOP a frame."""

    parameters: int
    gflop: float


def segmenting(model: VideoSlotModel | ModelConfig, *, decode: bool = True) -> Segmenting:
    """Count what `slotmatch.segmentation.segment` needs of a model.

    Args:
        model: a model or the config of one.
        decode: False for masks that are slot attention's: they need no decoder.
    """
    model = without_memory(model)
    parameters = count_parameters(model)
    unused = 0 if decode else parameters["decoder"][0]
    flops = count_flops(model, reconstruct=False, decode=decode)["total"]
    return Segmenting(parameters["total"][0] - unused, flops / 1e9)


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of each turn, and their quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        """The ratio as it stands in a table."""
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def times_faster(fast: Sequence[float], slow: Sequence[float]) -> Ratio:
    """How many times less the one took than the other, by the times of the same turns.

    Raises:
        ValueError: times of different numbers of turns, or none.
    """
    if len(fast) != len(slow) or not len(fast):
        raise ValueError(f"need times of the same turns, got {len(fast)} and {len(slow)}")
    low, median, high = np.quantile(np.divide(slow, fast), [0.25, 0.5, 0.75]).tolist()
    return Ratio(median, low, high)


def take_turns(jobs: Mapping[str, Callable[[], T]], *, repeats: int = 7) -> dict[str, list[T]]:
    """What each job returns in each turn, usually a time; before that each runs once for nothing.

    The jobs alternate, so that whatever else the machine does meets all of them: quote medians, and
    `times_faster` for a ratio.

    Raises:
        ValueError: no jobs, or no repeats.
    """
    if not jobs:
        raise ValueError("there is nothing to measure: give one or more jobs by name")
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}")
    for job in jobs.values():
        job()
    found: dict[str, list[T]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            found[name].append(job())
    return found


def now(device: torch.device) -> float:
    """Seconds on a clock with an arbitrary start, once ``device`` has done what it was asked to."""
    if device.type == "cuda":  # which returns before it is done
        torch.cuda.synchronize(device)
    return time.perf_counter()


def milliseconds(job: Callable[[], object], device: torch.device | None = None) -> float:
    """How long a job takes on a device, the CPU by default."""
    device = device or torch.device("cpu")
    started = now(device)
    job()
    return 1000 * (now(device) - started)


def ms_per_frame(
    models: Mapping[str, VideoSlotModel], video: np.ndarray, *, repeats: int = 7
) -> dict[str, list[float]]:
    """Milliseconds a frame from RGB to soft masks, of every model in every turn (`take_turns`).

    The video is streamed (``VideoSlotModel.stream``). Backbone, slots and masks count; reading
    the video and enlarging masks to pixels do not.

    Args:
        models: by name, in evaluation mode, each where its weights are.
        video: uint8 (T,H,W,3).
        repeats: turns that are measured.

    Raises:
        ValueError: no models, a model without backbone, a video of another kind, or no repeats.
    """
    frames = _frames(video)
    if bare := [name for name, model in models.items() if model.backbone is None]:
        raise ValueError(f"{', '.join(bare)} have no backbone: there are no frames to start from")

    def timed(model: VideoSlotModel) -> float:
        outputs = model.stream(frames[0][:, None], generator=torch.Generator().manual_seed(0))
        device = model.decoder.positions.device
        return milliseconds(lambda: deque(outputs, 0), device) / len(video)  # keeps none

    return take_turns({name: partial(timed, own) for name, own in models.items()}, repeats=repeats)


@torch.inference_mode()
def time_parts(
    model: VideoSlotModel,
    video: np.ndarray,
    *,
    reconstruct: bool = False,
    decode: bool = True,
    precision: Precision = "no",
) -> dict[str, float]:
    """Milliseconds a frame of the stages of a model, and in all (``"total"``), in one run.

    The stages are ``backbone``, ``slots`` (transform, slot attention and predictor) and
    ``decoder``; the whole video passes each at once.

    Args:
        model: in evaluation mode, where its weights are.
        video: uint8 (T,H,W,3), short.
        reconstruct: whether the decoder gives the reconstruction besides the masks.
        decode: False leaves the decoder out: the masks are slot attention's.
        precision: of all stages (`slotmatch.precision`).

    Raises:
        ValueError: a model without backbone, a video of another kind, or a precision that the
            device does not have.
    """
    device = model.decoder.positions.device
    check_precision(precision, device)
    frames = unit_floats(_frames(video).to(device))
    with autocast(frames, precision):
        marks = [now(device)]
        features = model.encode(frames)
        marks.append(now(device))
        generator = torch.Generator().manual_seed(0)
        slots = model.forward_features(features, decode=False, generator=generator).slots
        marks.append(now(device))
        stages = ["backbone", "slots"]
        if decode:
            model.decode(slots, reconstruct=reconstruct)
            marks.append(now(device))
            stages.append("decoder")
    times = 1000 * np.diff(marks) / len(video)
    return {**dict(zip(stages, times.tolist(), strict=True)), "total": float(times.sum())}


@dataclass(frozen=True)
class PeakMemory:
    """Bytes in use before a job, and at most while it ran; nan where the system does not tell."""

    before: float
    peak: float

    @property
    def added(self) -> float:
        """Bytes the job needed beyond what was there before."""
        return self.peak - self.before


def peak_memory(
    prepare: Callable[..., Callable[[], object]], *arguments: Any, device: str = "cpu"
) -> PeakMemory:
    """Memory that a job takes at its highest, in a process of its own that was started afresh.

    On the CPU this is what the kernel counts as resident (``VmHWM``), all of it: tensors, what the
    allocator holds back, libraries' buffers; known on Linux only. On a GPU it is what torch
    allocated there.

    Args:
        prepare: called in that process with ``arguments``, returns the job, which then runs once.
            What it made, such as weights and inputs, counts as there before. It has to be
            importable, and its arguments picklable.
        arguments: for ``prepare``.
        device: where the job computes, ``"cpu"`` or ``"cuda"``.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_peak_memory, prepare, arguments, device).result()


def _peak_memory(
    prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...], device: str
) -> PeakMemory:
    job = prepare(*arguments)
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return PeakMemory(before, torch.cuda.max_memory_allocated(device))
    if sys.platform != "linux":
        return PeakMemory(math.nan, math.nan)
    # Preparing may have needed more than the job does: its peak is forgotten. getrusage's would
    # not do, since a new process inherits the peak of the one that started it.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_peak()
    job()
    return PeakMemory(before, _resident_peak())


def _resident_peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def _frames(video: np.ndarray) -> Tensor:
    """A video uint8 (T,H,W,3) as a batch of one (1,T,3,H,W)."""
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or not len(video):
        raise ValueError(f"video must be uint8 (T,H,W,3), got {video.dtype} {video.shape}")
    return rearrange(torch.from_numpy(video), "t h w c -> 1 t c h w")
