"""What the notebooks run: how many videos, which models, how they are trained, at three sizes.

``smoke`` takes seconds and only shows that everything works; its numbers mean nothing. ``mini`` is
the default, for embedded data on two CPU cores. ``paper`` has the published sizes and schedule, for
a GPU, and trains from frames: the features of all of MOVi-E would fill 200 GB.

Embedded data sets have three splits of their own. Of a real one the split that the literature
scores is the ``test`` here: MOVi's and DAVIS's ``validation``, the hold-out of YouTube-VIS and
OVIS. What is chosen is chosen on the last ``HELD_BACK`` videos of its ``train`` split, which are
not trained on. At a size that takes so many videos the first ones of each split are taken, so that
a part of a data set is enough.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import overload

import numpy as np

from slotmatch import backbones, data
from slotmatch.backbones import Features, cached_features
from slotmatch.data import Clip
from slotmatch.data.catalogue import check_name
from slotmatch.data.clips import content, ids_of
from slotmatch.data.preprocessing import PREPROCESSING
from slotmatch.model import PRESETS, ModelConfig, Preset, VideoSlotModel
from slotmatch.settings import Size, check_choice
from slotmatch.training import Frames, TrainConfig

__all__ = [
    "MINI_STUDENT",
    "MINI_TEACHER",
    "PAPER",
    "SIZES",
    "VIDEO_SETS",
    "Experiment",
    "Part",
    "example_clips",
    "lighter",
    "read_features",
    "select",
    "training_clips",
]

HELD_BACK = 100
"""Videos at the end of a real data set's train split that are for choosing; a tenth of few."""
SCORED = "validation"
"""The split of a real data set that the literature scores."""
VIDEO_SETS = ("ytvis2021", "ovis", "davis2017", "davis2016")
"""Real videos: sizes and schedule of YouTube-VIS 2021."""


@dataclass(frozen=True)
class Experiment:
    """Models, number of videos of each split, and the training of teacher and student.

    ``student`` holds the SlotMatch term's weight; ``students`` has it beside its controls.
    ``n_videos`` has None for a whole split.
    """

    name: str
    dataset: str
    models: Preset
    n_videos: Mapping[str, int | None]
    teacher: TrainConfig
    student: TrainConfig

    @property
    def embedded(self) -> bool:
        """Whether the data are made on this machine."""
        return self.dataset in data.EMBEDDED

    @property
    def from_frames(self) -> bool:
        """Whether backbones run in every step, instead of once for cached features."""
        return self.name == "paper"

    @property
    def students(self) -> dict[str, TrainConfig]:
        """The student's training and those of its controls, which have something for the term.

        All have their own weights, their teacher's initial slots, and the same clips in the same
        order. ``no_term`` has the SlotMatch term left out; ``teacher_recipe`` has, in its place,
        what the teacher itself was trained with: the attention term, where the preset has one.
        Each has the learning rate that did best for it on validation videos, of those in
        ``experiments.students.tried``: training without the term collapses at the student's.
        """
        alone = replace(self.student, match_weight=0.0)
        steady = alone.learning_rate * (1.0 if self.from_frames else NO_TERM_RATE)
        found = {"student": self.student, "no_term": replace(alone, learning_rate=steady)}
        if self.teacher.attention_weight:
            found["teacher_recipe"] = replace(
                alone,
                attention_weight=self.teacher.attention_weight,
                attention_until=self.teacher.attention_until,
            )
        return found

    def open(self, split: str, *, progress: bool | None = None) -> Sequence[Clip]:
        """The clips of a split, as many as the experiment takes.

        ``"train"``, ``"validation"`` (for choosing) or ``"test"`` (scored). Of a real data set the
        first two are parts of its train split: see the top of this module.

        Raises:
            ValueError: another split.
            FileNotFoundError: a real data set whose files are not on this machine.
        """
        if split not in self.n_videos:
            raise ValueError(
                f"no split is called {split!r}; choose from {', '.join(self.n_videos)}"
            )
        n_videos = self.n_videos[split]
        if self.embedded:
            return data.open(self.dataset, split, n_videos=n_videos, progress=progress)
        if split == "test":
            return data.open(self.dataset, SCORED, n_videos=n_videos, progress=progress)
        parts = (self.n_videos["train"], self.n_videos["validation"])
        n_opened = None if None in parts else sum(n for n in parts if n is not None)
        clips = data.open(self.dataset, "train", n_videos=n_opened, progress=progress)
        n_held_back = parts[1] or min(HELD_BACK, math.ceil(len(clips) / 10))
        first_held_back = len(clips) - n_held_back
        train, validation = range(first_held_back), range(first_held_back, len(clips))
        return Part(clips, train if split == "train" else validation)


class Part(Sequence[Clip]):
    """Some clips of a data set, read when asked for."""

    def __init__(self, clips: Sequence[Clip], indices: range) -> None:
        self.clips, self.indices = clips, indices

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the clips, in order."""
        names = ids_of(self.clips)
        return tuple(names[i] for i in self.indices)

    def content(self, position: int) -> str:
        """What tells one clip's frames from any others."""
        return content(self.clips, self.indices[position])

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Clip]: ...
    def __getitem__(self, index: int | slice) -> Clip | Sequence[Clip]:
        if isinstance(index, slice):
            return Part(self.clips, self.indices[index])
        return self.clips[self.indices[index]]


MINI_TEACHER = TrainConfig(
    steps=10_000,
    batch_size=12,
    clip_length=6,
    doublings=(0.5, 0.8),
    learning_rate=2e-3,
    warmup_steps=250,
    decay=0.05,
    grad_clip=1.0,
    contrast_weight=0.1,
    attention_weight=2.0,
    attention_until=0.6,
    patch_fraction=0.125,
    validate_every=2000,
    checkpoint_every=250,
)
"""Differs from SlotContrast where the toy needs it; the teacher's page has what was tried."""

NO_TERM_RATE = 0.5
"""Share of the student's learning rate at which it does best without the term."""

MINI_STUDENT = replace(
    MINI_TEACHER,
    steps=3000,
    batch_size=4,
    learning_rate=4e-3,
    warmup_steps=100,
    match_weight=3.0,
    attention_weight=0.0,
    attention_until=0.0,
    validate_every=500,
)
"""The distillation page has what was tried for beta and the learning rate, on validation videos.
The student that comes with the package has the same recipe over more steps and data sets."""

PAPER = TrainConfig(
    steps=100_000,
    batch_size=64,
    learning_rate=4e-4,
    contrast_weight=0.5,
    flip_probability=0.5,
    checkpoint_every=1000,
    validate_every=2500,
)
"""SlotContrast's schedule. The weight of the SlotMatch term is not known from the paper's abstract:
1 is our choice."""

SIZES: Mapping[str, Mapping[str, int | None]] = MappingProxyType(
    {
        "smoke": {"train": 4, "validation": 2, "test": 3},
        "mini": {"train": 200, "validation": 24, "test": 100},
        "paper": {"train": None, "validation": None, "test": None},
    }
)
"""Videos of each split by preset; None takes all."""


def select(
    preset: Size, dataset: str, *, backbone: str = "embedded", steps: int = 0, seed: int = 0
) -> Experiment:
    """The experiment of a preset on a data set.

    Args:
        preset: ``"smoke"``, ``"mini"`` or ``"paper"``.
        dataset: a name of ``slotmatch.data.NAMES``.
        backbone: ``"embedded"`` takes the preset's own pair for teacher and student; any other name
            of ``slotmatch.backbones`` replaces both.
        steps: of training; 0 takes the preset's own number. A warm-up shrinks in proportion.
        seed: of weights and training.

    Raises:
        ValueError: an unknown name, or a backbone that does not fit the models' image size or
            preset.
    """
    check_choice("preset", preset, Size)
    check_name(dataset)
    models, teacher, student = PRESETS["mini"], MINI_TEACHER, MINI_STUDENT
    if preset == "paper":
        like = "ytvis2021" if dataset in VIDEO_SETS else "movi_c"
        models = PRESETS.get(dataset.removeprefix("mini"), PRESETS[like])
        teacher, student = PAPER, replace(PAPER, match_weight=1.0)
        if dataset in ("movi_e", "minimovi_e"):
            teacher, student = replace(teacher, steps=300_000), replace(student, steps=300_000)
        if dataset in VIDEO_SETS:
            teacher, student = (
                replace(config, learning_rate=8e-4, flip_probability=0.0)
                for config in (teacher, student)
            )
    if preset == "smoke":  # for videos of any length, and for several processes
        teacher, student = (
            replace(_shortened(config, 8), doublings=()) for config in (teacher, student)
        )
    if backbone != "embedded":
        models = replace(
            models,
            teacher=_on(backbone, models.teacher),
            student=_on(backbone, models.student),
        )
    if steps:
        teacher, student = (_shortened(config, steps) for config in (teacher, student))
    return Experiment(
        preset,
        dataset,
        models,
        SIZES[preset],
        replace(teacher, seed=seed),
        replace(student, seed=seed),
    )


def lighter(experiment: Experiment, decoder_width: int) -> Experiment:
    """The experiment with another width of the student's decoder, beyond the paper.

    Raises:
        ValueError: a width that is not a positive integer.
    """
    student = replace(experiment.models.student, decoder_hidden=decoder_width)
    return replace(experiment, models=replace(experiment.models, student=student))


def training_clips(
    experiment: Experiment, model: VideoSlotModel, *, progress: bool | None = None
) -> Features | Frames:
    """What a model trains on: features of its own backbone, or preprocessed clips at ``paper``.

    The clips start and are cropped as ``slotmatch.data.preprocessing`` has it for the data set;
    teacher and student see the same ones. Whether one is mirrored is the training's choice.
    """
    features = read_features(experiment, "train", model, progress=progress)
    if features is not None:
        return features
    preprocessing = replace(PREPROCESSING[experiment.dataset], flip_probability=0.0)
    return Frames(experiment.open("train", progress=progress), preprocessing)


def read_features(
    experiment: Experiment, split: str, model: VideoSlotModel, *, progress: bool | None = None
) -> Features | None:
    """Features of a split by the model's own backbone, computed once, then cached.

    None where the experiment works from frames: evaluation then runs the backbone itself.
    """
    if experiment.from_frames:
        return None
    assert model.backbone is not None
    clips = experiment.open(split, progress=progress)
    name = f"{experiment.dataset}/{split}"
    return cached_features(clips, model.backbone, name=name, progress=progress)


def example_clips(clips: Sequence[Clip], scores: Mapping[str, list[float]], n: int) -> list[Clip]:
    """Clips at evenly spaced ranks of their video FG-ARI, best first: not a choice of the best."""
    order = np.argsort(scores["video_fg_ari"])[::-1]
    ranks = np.linspace(0, len(order) - 1, n + 2)[1:-1].round().astype(int)
    return [clips[int(order[rank])] for rank in ranks]


def _shortened(config: TrainConfig, steps: int) -> TrainConfig:
    warmup = math.floor(config.warmup_steps * steps / config.steps)
    return replace(config, steps=steps, warmup_steps=min(warmup, steps - 1))


def _on(backbone: str, config: ModelConfig) -> ModelConfig:
    """The same model over another backbone, on as nearly as possible the same patch grid."""
    stride = backbones.spec(backbone).stride
    return replace(config, backbone=backbone, image_size=config.grid * stride)
