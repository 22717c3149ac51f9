"""What a training step reads: which clips is a function of seed and step, cut ahead by workers.

Workers decode the frames of a clip and no others, and hand over bytes; the device makes floats of
them and resizes.

Shapes: N videos; B clips, T frames, P patches, F feature width; S the side of a square.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slotmatch.backbones import Features
from slotmatch.data import HasVideo
from slotmatch.data.clips import LazyVideo, content, digest, ids_of, video_of
from slotmatch.data.preprocessing import AS_IS, Cut, Preprocessing, clip_starts
from slotmatch.model import SlotState, VideoSlotModel
from slotmatch.settings import Correspondence, Pairing
from slotmatch.training.recipe import TrainConfig

__all__ = [
    "Batch",
    "Chance",
    "CutFrames",
    "FeatureClips",
    "Frames",
    "Reading",
    "Source",
    "Videos",
    "batches",
    "draw",
    "source",
]

AHEAD = 2
"""Batches that each worker reads before they are asked for."""
MOST_WORKERS = 8


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
    size, _ = config.clips(step)
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


@dataclass(frozen=True)
class Batch:
    """The clips of one process in one step, and what chance decided for them.

    ``clips`` and ``teacher_clips``, the same frames as each model reads them, are features
    (B,T,P,F) or frames (B,T,3,H,W), floats in [0, 1].
    """

    step: int
    clips: Tensor
    teacher_clips: Tensor
    patches: Tensor | None  # indices of the decoded ones; None: all
    seed: int  # of initial slots that are sampled
    first: int  # place of these clips in the batch of all processes
    size: int  # clips of that batch

    @property
    def place(self) -> slice:
        """Of these clips in that batch."""
        return slice(self.first, self.first + len(self.clips))

    def initial_state(self, model: VideoSlotModel) -> SlotState:
        """What the clips start from. Slots are drawn for the batch of all processes, so that a
        clip has the same ones however the batch is cut."""
        generator = torch.Generator().manual_seed(self.seed)
        return SlotState(model.initial_slots(self.size, generator)[self.place], 0)

    def correspondence(self, pairing: Pairing, n_slots: int) -> Correspondence | Tensor:
        """What the SlotMatch term pairs slots by; if shuffled, the clips' orders (B,K), which are
        drawn as the initial slots are."""
        if pairing != "shuffled":
            return pairing
        generator = torch.Generator().manual_seed(self.seed)
        orders = torch.rand(self.size, n_slots, generator=generator).argsort(dim=-1)
        return orders[self.place].to(self.clips.device)

    def micro_batches(self, n: int) -> list[Self]:
        """Parts of equal size, in order."""
        size = len(self.clips) // n
        pairs = zip(self.clips.split(size), self.teacher_clips.split(size), strict=True)
        return [
            replace(self, clips=own, teacher_clips=others, first=self.first + i * size)
            for i, (own, others) in enumerate(pairs)
        ]


@dataclass(frozen=True)
class CutFrames:
    """Clips of one batch before they are resized, in one tensor whatever their sizes."""

    pixels: Tensor  # uint8, those of one clip's (T,h,w,3) after those of another
    shapes: tuple[tuple[int, ...], ...]
    cuts: tuple[Cut, ...]
    preprocessing: Preprocessing

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        """The same elsewhere."""
        return replace(self, pixels=move(self.pixels))

    def float(self) -> Tensor:
        """The clips (B,T,3,H,W) in [0, 1], where the pixels are; one after the other."""
        side = self.preprocessing.size
        n_frames, *size = self.shapes[0][:3]
        finished = (n_frames, 3, *(size if side is None else (side, side)))
        clips = self.pixels.new_empty((len(self.shapes), *finished), dtype=torch.float32)
        parts = self.pixels.split([math.prod(shape) for shape in self.shapes])
        for clip, part, shape, cut in zip(clips, parts, self.shapes, self.cuts, strict=True):
            clip.copy_(self.preprocessing.finish(part.view(shape), cut))
        return clips


@dataclass(frozen=True)
class Reading:
    """What a worker read for one step, of which ``to`` makes a `Batch`.

    ``clips`` has one entry, or two if the teacher reads others than the student: features (B,T,P,F)
    in the precision they are stored in, or frames.
    """

    step: int
    clips: tuple[Tensor | CutFrames, ...]
    patches: Tensor | None
    seed: int
    first: int
    size: int

    def to(self, device: torch.device) -> Batch:
        """The batch on a device: there features and pixels become floats, and frames are resized.

        On a CPU frames are those of `Preprocessing.train` to the last bit; a GPU rounds otherwise.
        """
        own = self._moved(lambda tensor: tensor.to(device, non_blocking=True))
        clips = [one.float() for one in own.clips]
        return Batch(
            self.step,
            clips=clips[0],
            teacher_clips=clips[-1],
            patches=own.patches,
            seed=self.seed,
            first=self.first,
            size=self.size,
        )

    def pin_memory(self) -> Self:
        """The same where a GPU can fetch it while the CPU goes on."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        clips = (one.moved(move) if isinstance(one, CutFrames) else move(one) for one in self.clips)
        patches = None if self.patches is None else move(self.patches)
        return replace(self, clips=tuple(clips), patches=patches)


@dataclass(frozen=True, eq=False)
class FeatureClips:
    """Videos as features (N,T,P,F), usually on disk."""

    features: Features

    def __len__(self) -> int:
        return len(self.features)

    @property
    def n_frames(self) -> int:
        """Frames of each video."""
        return self.features.array.shape[1]

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these features from any others."""
        array = self.features.array
        return {
            "shape": list(array.shape),
            "sha256": hashlib.sha256(np.ascontiguousarray(array).data).hexdigest(),
            "encoder": self.features.encoder,
        }

    def check(self, name: str, model: VideoSlotModel, config: TrainConfig) -> None:
        """Refuse, with a ValueError, features that the model cannot be trained on."""
        expected = (model.config.n_patches, model.config.feature_dim)
        shape = self.features.array.shape
        if len(shape) != 4 or shape[2:] != expected or not shape[0]:
            raise ValueError(
                f"{name} must be features (N,T,{expected[0]},{expected[1]}) for this model, "
                f"got {shape}"
            )
        if self.n_frames < config.longest:
            raise ValueError(
                f"{name} {shape} has {self.n_frames} frames, fewer than clip_length "
                f"{config.longest}"
            )
        if config.flip_probability:
            raise ValueError(
                f"flip_probability {config.flip_probability} needs videos, since cached features "
                "are of unmirrored frames: set it to 0 or give videos"
            )
        self.features.check_made_by(model.backbone, name)

    def cut(self, chance: Chance, share: slice, length: int) -> Tensor:
        """The clips of a batch, (B,T,P,F) in the precision they are stored in."""
        starts = (chance.places[share] * (self.n_frames - length + 1)).astype(int)
        frames = starts[:, None] + np.arange(length)
        return torch.from_numpy(self.features.array[chance.videos[share, None], frames])


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
        return len(video_of(self.clips, 0))

    @property
    def identity(self) -> dict[str, Any]:
        """What tells these videos from others: their names, and what they hold."""
        identity = {
            "videos": len(self),
            "ids": digest(list(ids_of(self.clips))),
            "content": digest([content(self.clips, i) for i in range(len(self))]),
        }
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
        self._long_enough(0, config.longest)

    def cut(self, chance: Chance, share: slice, length: int) -> CutFrames:
        """The clips of a batch. No other frames are read, where the videos allow it."""
        places = range(len(chance.videos))[share]
        frames, cuts = zip(*(self._cut(chance, place, length) for place in places), strict=True)
        prepare, shapes = self._prepare, tuple(part.shape for part in frames)
        if prepare.size is None and len(set(shapes)) > 1:
            raise ValueError(f"videos of one batch must have one size, got {sorted(set(shapes))}")
        pixels = torch.from_numpy(np.concatenate([part.ravel() for part in frames]))
        return CutFrames(pixels, shapes, cuts, prepare)

    def _cut(self, chance: Chance, place: int, length: int) -> tuple[np.ndarray, Cut]:
        video = self._long_enough(int(chance.videos[place]), length)
        starts = clip_starts(len(video), length, aligned=self._prepare.aligned_starts)
        start = starts[int(chance.places[place] * len(starts))]
        rng = np.random.default_rng(chance.crops[place])
        frames, cut = self._prepare.cut(video[start : start + length], rng)
        cut = replace(cut, mirrored=cut.mirrored != bool(chance.flipped[place]))
        return np.ascontiguousarray(frames), cut  # what was cut off is not kept

    @property
    def _prepare(self) -> Preprocessing:
        return self.preprocessing or AS_IS

    def _long_enough(self, index: int, length: int) -> np.ndarray | LazyVideo:
        for offset in range(len(self.clips)):
            video = video_of(self.clips, (index + offset) % len(self.clips))
            if len(video) >= length:
                return video
        raise ValueError(
            f"all {len(self.clips)} videos have fewer frames than clip_length {length}"
        )


Videos = Features | np.ndarray | Tensor | Sequence[HasVideo] | Frames
Source = FeatureClips | Frames


def source(clips: Videos) -> Source:
    """Features of an array (N,T,P,F), frames of anything else."""
    if isinstance(clips, Frames):
        return clips
    if isinstance(clips, Features | np.ndarray | Tensor):
        return FeatureClips(Features.of(clips))
    return Frames(clips)


class _Steps(Dataset[Reading]):
    """What is read for every step, a pure function of the seed and the step's number."""

    def __init__(
        self,
        sources: Sequence[Source],
        config: TrainConfig,
        process: tuple[int, int],
        n_patches: int,
    ) -> None:
        self.sources, self.config = sources, config
        self.process, self.n_patches = process, n_patches

    def __getitem__(self, step: int) -> Reading:
        chance = draw(self.config, step, len(self.sources[0]), self.n_patches)
        size, length = self.config.clips(step)
        rank, n_processes = self.process
        own = size // n_processes
        share = slice(rank * own, (rank + 1) * own)
        return Reading(
            step,
            clips=tuple(one.cut(chance, share, length) for one in self.sources),
            patches=chance.patches,
            seed=chance.seed,
            first=share.start,
            size=size,
        )


def batches(
    sources: Sequence[Source],
    config: TrainConfig,
    *,
    first: int,
    process: tuple[int, int] = (0, 1),
    n_patches: int,
    device: torch.device,
    workers: int | None = None,
) -> DataLoader[Reading]:
    """What is read for a run's batches from step ``first`` on, on the CPU, in order.

    Args:
        sources: the student's videos and, if it reads other features, the teacher's of the same.
        config: batch size, clip length, seed, number of steps.
        first: the step to begin with, counted from 0.
        process: this process's number, and how many share each batch.
        n_patches: of a frame, for the choice of those that are decoded.
        device: where batches will go.
        workers: processes that read ahead; 0 reads when asked. None: none beside a CPU that
            computes, else as many as there are cores, up to ``MOST_WORKERS``. They do not change
            what a step gets.

    Raises:
        ValueError: a number of workers below 0.
    """
    if workers is None:
        workers = 0 if device.type == "cpu" else min(MOST_WORKERS, os.cpu_count() or 1)
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    return DataLoader(
        _Steps(sources, config, process, n_patches),
        batch_size=None,
        sampler=range(first, config.steps),
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or it would draw a seed from the global one
    )
