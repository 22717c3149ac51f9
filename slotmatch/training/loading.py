"""What a training step reads: which clips are a function of seed and step, cut ahead by threads.

Shapes: N videos; B clips, T frames, P patches, F feature width, S side of a frame in pixels.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from slotmatch.data import HasVideo
from slotmatch.data.preprocessing import Preprocessing, clip_starts
from slotmatch.model import VideoSlotModel
from slotmatch.training.recipe import TrainConfig

__all__ = ["Chance", "Features", "Frames", "Loader", "Videos", "draw", "source"]

AHEAD = 2
"""Batches that are read before they are asked for: all that waits in memory."""
MOST_WORKERS = 8
"""Threads beyond which Python itself is in the way of decoding images."""

Part = np.ndarray | Tensor


@dataclass(frozen=True)
class Chance:
    """What chance decides in one step, for the batches of all processes together."""

    videos: np.ndarray  # (B,) which
    places: np.ndarray  # (B,) where in its video a clip starts, in [0, 1)
    flipped: np.ndarray  # (B,) whether it is mirrored
    seed: int  # of initial slots that are sampled
    patches: Tensor | None  # the decoded ones; None: all
    crops: np.ndarray  # (B,) seeds of where a clip is cropped


def draw(config: TrainConfig, step: int, n_videos: int, n_patches: int) -> Chance:
    """Videos differ within a batch as long as there are enough."""
    size = config.batch_size
    rng = np.random.default_rng((config.seed, step))
    videos = rng.choice(n_videos, size, replace=n_videos < size)
    places = rng.random(size)
    flipped = rng.random(size) < config.flip_probability
    seed = int(rng.integers(2**62))
    n_decoded = max(1, round(config.patch_fraction * n_patches))
    patches = None
    if n_decoded < n_patches:
        patches = torch.from_numpy(rng.permutation(n_patches)[:n_decoded])
    return Chance(videos, places, flipped, seed, patches, rng.integers(2**62, size=size))


@dataclass(frozen=True, eq=False)
class Features:
    """Videos as features (N,T,P,F), usually on disk."""

    array: np.ndarray

    def __len__(self) -> int:
        return len(self.array)

    @property
    def n_frames(self) -> int:
        """Frames of each video."""
        return self.array.shape[1]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these videos from others."""
        return {"shape": list(self.array.shape), "first": _digest(self.array[0])}

    def check(self, name: str, model: VideoSlotModel, config: TrainConfig) -> None:
        """Refuse, with a ValueError, features that the model cannot be trained on."""
        expected = (model.config.n_patches, model.config.feature_dim)
        if self.array.ndim != 4 or self.array.shape[2:] != expected or not len(self.array):
            raise ValueError(
                f"{name} must be features (N,T,{expected[0]},{expected[1]}) for this model, "
                f"got {self.array.shape}"
            )
        _require_frames(f"{name} {self.array.shape}", self.n_frames, config.clip_length)
        if config.flip_probability:
            raise ValueError(
                f"flip_probability {config.flip_probability} needs videos, since cached features "
                "are of unmirrored frames: set it to 0 or give videos"
            )

    def jobs(self, chance: Chance, share: slice, length: int) -> list[Callable[[], Part]]:
        """Reads a batch in one go."""
        return [partial(self._cut, chance, share, length)]

    def join(self, parts: list[Any], chance: Chance, share: slice, device: torch.device) -> Tensor:
        """What the jobs read, as floats (B,T,P,F)."""
        return torch.from_numpy(parts[0]).to(device).float()

    def _cut(self, chance: Chance, share: slice, length: int) -> np.ndarray:
        starts = (chance.places[share] * (self.n_frames - length + 1)).astype(int)
        frames = starts[:, None] + np.arange(length)
        return self.array[chance.videos[share, None], frames]


@dataclass(frozen=True, eq=False)
class Frames:
    """Videos as frames, uint8 (T,H,W,3), perhaps of different lengths and sizes.

    With ``preprocessing`` clips start and are cropped as it says; whether one is mirrored is the
    training's own affair (``TrainConfig.flip_probability``), so it must not say so as well. Without
    it clips start anywhere and keep their size. In place of a video shorter than a clip comes the
    next that is long enough.
    """

    clips: Sequence[HasVideo]
    preprocessing: Preprocessing | None = None

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def n_frames(self) -> int:
        """Frames of the first video."""
        return len(self.clips[0].video)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these videos from others."""
        first = self.clips[0]
        identity = {"videos": len(self), "id": first.id, "first": _digest(first.video)}
        if self.preprocessing is not None:
            identity["preprocessing"] = asdict(self.preprocessing)
        return identity

    def check(self, name: str, model: VideoSlotModel, config: TrainConfig) -> None:
        """Refuse, with a ValueError, videos that the model cannot be trained on."""
        if not len(self):
            raise ValueError(f"{name} must hold at least one video, got none")
        if model.backbone is None:
            raise ValueError(
                f"{name} are videos, but the model that reads them has no backbone: give features"
            )
        if self.preprocessing is not None and self.preprocessing.flip_probability:
            raise ValueError(
                f"{name} would be mirrored twice: set the preprocessing's flip_probability "
                f"{self.preprocessing.flip_probability} to 0 and use the training's own"
            )
        self._long_enough(0, config.clip_length)

    def jobs(self, chance: Chance, share: slice, length: int) -> list[Callable[[], Part]]:
        """Reads a clip each."""
        places = range(len(chance.videos))[share]
        return [partial(self._cut, chance, place, length) for place in places]

    def join(self, parts: list[Any], chance: Chance, share: slice, device: torch.device) -> Tensor:
        """What the jobs read, as floats (B,T,3,H,W) in [0, 1]."""
        if len(sizes := {tuple(part.shape) for part in parts}) > 1:
            raise ValueError(f"videos of one batch must have one size, got {sorted(sizes)}")
        flipped = torch.from_numpy(chance.flipped[share]).to(device)[:, None, None, None, None]
        if self.preprocessing is None:
            frames = torch.from_numpy(np.stack(parts)).to(device)
            video = rearrange(frames, "b t h w c -> b t c h w")
            return torch.where(flipped, video.flip(-1), video).float() / 255
        video = torch.stack(parts).to(device)
        return torch.where(flipped, video.flip(-1), video)

    def _cut(self, chance: Chance, place: int, length: int) -> Part:
        video = self._long_enough(int(chance.videos[place]), length)
        aligned = self.preprocessing is not None and self.preprocessing.aligned_starts
        starts = clip_starts(len(video), length, aligned=aligned)
        start = starts[int(chance.places[place] * len(starts))]
        clip = video[start : start + length]
        if self.preprocessing is None:
            return clip
        # A copy, since tensors cannot share the memory of a file that is only read.
        return self.preprocessing.train(np.array(clip), np.random.default_rng(chance.crops[place]))

    def _long_enough(self, index: int, length: int) -> np.ndarray:
        for offset in range(len(self.clips)):
            video = self.clips[(index + offset) % len(self.clips)].video
            if len(video) >= length:
                return video
        raise ValueError(
            f"all {len(self.clips)} videos have fewer frames than clip_length {length}"
        )


Videos = np.ndarray | Tensor | Sequence[HasVideo] | Frames
Source = Features | Frames


def source(clips: Videos) -> Source:
    """Features of an array (N,T,P,F), frames of anything else."""
    if isinstance(clips, Frames):
        return clips
    if isinstance(clips, np.ndarray | Tensor):
        return Features(np.asarray(clips))  # a plain array: indexing a memmap costs more
    return Frames(clips)


class Loader:
    """The batches of a run in the order of its steps, from one source or from several in parallel.

    With workers, threads read the next ``AHEAD`` batches while a step computes. Images are decoded
    and resized outside of Python's lock, so threads do it as well as processes would, and need no
    copies. What a step gets does not depend on their number.

    Args:
        sources: of the same videos in the same order.
        config: batch size, clip length, seed, number of steps.
        share: this process's clips of the batch of all processes.
        n_patches: of a frame, for the choice of those that are decoded.
        device: where batches go.
        workers: threads; 0 reads when asked. None: none beside a CPU that computes, else up to
            ``MOST_WORKERS``.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        config: TrainConfig,
        *,
        share: slice,
        n_patches: int,
        device: torch.device,
        workers: int | None = None,
    ) -> None:
        if workers is None:
            workers = 0 if device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)
        if workers < 0:
            raise ValueError(f"workers must be 0 or more, got {workers}")
        self.sources, self.config, self.share = sources, config, share
        self.n_patches, self.device = n_patches, device
        self._pool = ThreadPoolExecutor(workers) if workers else None
        self._waiting: deque[tuple[int, list[list[Future[Part]]]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def read(self, step: int) -> tuple[Chance, list[Tensor]]:
        """What chance decides in a step, and the batch of each source."""
        chance = self._draw(step)
        parts = self._read_ahead(step) if self._pool else self._read_now(chance)
        return chance, [
            one.join(own, chance, self.share, self.device)
            for one, own in zip(self.sources, parts, strict=True)
        ]

    def _draw(self, step: int) -> Chance:
        return draw(self.config, step, len(self.sources[0]), self.n_patches)

    def _jobs(self, chance: Chance) -> list[list[Callable[[], Part]]]:
        length = self.config.clip_length
        return [one.jobs(chance, self.share, length) for one in self.sources]

    def _read_now(self, chance: Chance) -> list[list[Part]]:
        return [[job() for job in jobs] for jobs in self._jobs(chance)]

    def _read_ahead(self, step: int) -> list[list[Part]]:
        assert self._pool is not None
        while self._waiting and self._waiting[0][0] != step:
            self._waiting.popleft()
        first = self._waiting[-1][0] + 1 if self._waiting else step
        for later in range(first, min(step + AHEAD + 1, self.config.steps)):
            jobs = self._jobs(self._draw(later))
            self._waiting.append((later, [[self._pool.submit(job) for job in own] for own in jobs]))
        _, futures = self._waiting.popleft()
        return [[future.result() for future in own] for own in futures]


def _require_frames(name: str, n_frames: int, clip_length: int) -> None:
    if n_frames < clip_length:
        raise ValueError(f"{name} has {n_frames} frames, fewer than clip_length {clip_length}")


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
