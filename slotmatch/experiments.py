"""What the notebooks run: how many videos, which models, how they are trained, at three sizes.

``smoke`` takes seconds and only shows that everything works; its numbers mean nothing. ``mini`` is
the default, for embedded data on two CPU cores. ``paper`` has the published sizes and schedule, for
a GPU.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from slotmatch import backbones, data, evaluation, paths
from slotmatch.data import Clip
from slotmatch.features import cached_features
from slotmatch.model import VideoSlotModel, load, save
from slotmatch.presets import PRESETS, ModelConfig, Preset
from slotmatch.training import INHERITABLE, TrainConfig, train

__all__ = [
    "SIZES",
    "Experiment",
    "example_clips",
    "load_teacher",
    "read_features",
    "select",
    "teacher_path",
    "train_mini_teacher",
]


@dataclass(frozen=True)
class Experiment:
    """Models, number of videos of each split, and the training of teacher and student.

    ``student`` holds the SlotMatch term's weight; without it the same training gives the
    undistilled student. Both start from the ``inherited`` parts of their teacher. ``n_videos`` has
    None for a whole split.
    """

    name: str
    dataset: str
    models: Preset
    n_videos: Mapping[str, int | None]
    teacher: TrainConfig
    student: TrainConfig
    inherited: tuple[str, ...]

    @property
    def scratch(self) -> TrainConfig:
        """A student without any teacher: the teacher's recipe in the student's number of steps."""
        return _shortened(self.teacher, self.student.steps)

    def open(self, split: str, *, progress: bool = False) -> Sequence[Clip]:
        """The clips of a split, as many as the experiment takes."""
        n_videos = self.n_videos[split]
        return data.open(self.dataset, split, n_videos=n_videos, progress=progress)


MINI_TEACHER = TrainConfig(
    steps=8000,
    batch_size=12,
    clip_length=6,
    learning_rate=2e-3,
    warmup_steps=250,
    decay=0.1,
    grad_clip=1.0,
    contrast_weight=0.1,
    attention_weight=2.0,
    attention_until=0.6,
    patch_fraction=0.125,
    validate_every=1000,
    checkpoint_every=250,
)
"""Differs from SlotContrast where the toy needs it; the teacher's page has what was tried."""

MINI_STUDENT = replace(
    MINI_TEACHER,
    steps=2500,
    batch_size=3,
    clip_length=8,
    learning_rate=7e-4,
    warmup_steps=200,
    decay=0.05,
    match_weight=0.3,
    attention_weight=0.0,
    attention_until=0.0,
    validate_every=500,
)
"""No attention term, since it starts from its teacher's attention. The distillation page has what
was tried for beta and the learning rate, on validation videos."""

MINI_TEACHER_DATA = ("minimovi_a", "minimovi_c")
"""What the teacher that comes with the package was trained on, half and half."""

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
    preset: str, dataset: str, *, backbone: str = "embedded", steps: int = 0, seed: int = 0
) -> Experiment:
    """The experiment of a preset on a data set.

    Args:
        preset: a key of ``SIZES``.
        dataset: a name of ``slotmatch.data.NAMES``.
        backbone: ``"embedded"`` takes the preset's own pair for teacher and student; any other name
            of ``slotmatch.backbones`` replaces both.
        steps: of training; 0 takes the preset's own number. A warm-up shrinks in proportion.
        seed: of weights and training.

    Raises:
        ValueError: an unknown name, or a backbone that does not fit the models' image size.
    """
    if preset not in SIZES:
        raise ValueError(f"no preset is called {preset!r}; choose from {', '.join(SIZES)}")
    if dataset not in data.NAMES:
        raise ValueError(f"no data set is called {dataset!r}; choose from {', '.join(data.NAMES)}")
    models, teacher, student = PRESETS["mini"], MINI_TEACHER, MINI_STUDENT
    inherited = tuple(INHERITABLE)
    if preset == "paper":
        models = PRESETS.get(dataset.removeprefix("mini"), PRESETS["movi_c"])
        teacher, student = PAPER, replace(PAPER, match_weight=1.0)
        if dataset in ("movi_e", "minimovi_e"):
            teacher, student = replace(teacher, steps=300_000), replace(student, steps=300_000)
        if dataset in ("ytvis2021", "davis2017"):
            teacher, student = (
                replace(config, learning_rate=8e-4, flip_probability=0.0)
                for config in (teacher, student)
            )
    if preset == "smoke":
        teacher, student = (_shortened(config, 8) for config in (teacher, student))
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
        inherited,
    )


def read_features(
    experiment: Experiment, split: str, config: ModelConfig, *, progress: bool = False
) -> np.ndarray:
    """Features (N,T,P,F) of a split by the backbone of ``config``, computed once, then cached."""
    assert config.backbone is not None
    assert config.image_size is not None
    clips = experiment.open(split, progress=progress)
    backbone = backbones.build(config.backbone, image_size=config.image_size)
    name = f"{experiment.dataset}/{split}"
    return cached_features(clips, backbone, name=name, progress=progress)


def teacher_path(experiment: Experiment) -> Path:
    """Where ``02_teacher`` leaves a teacher that it trained, for ``03_distill`` to find."""
    backbone = experiment.models.teacher.backbone
    name = f"{experiment.dataset}.{experiment.name}.{backbone}.seed{experiment.teacher.seed}"
    return paths.cache_dir() / "teachers" / f"{name}.safetensors"


def load_teacher(experiment: Experiment) -> tuple[VideoSlotModel, str]:
    """The teacher to distil from, and where it comes from.

    That is the one ``02_teacher`` trained with the same parameters, or else the one that comes with
    the package; either only if it has the experiment's architecture.

    Raises:
        FileNotFoundError: neither exists; the message says how to make one.
    """
    own = teacher_path(experiment)
    if own.is_file() and (teacher := load(own)).config == experiment.models.teacher:
        return teacher, f"trained by 02_teacher: {own.name}"
    if experiment.models == PRESETS["mini"]:
        return load("mini-teacher"), "mini-teacher, which comes with the package"
    raise FileNotFoundError(
        f"there is no teacher of preset {experiment.name} with backbone "
        f"{experiment.models.teacher.backbone} for {experiment.dataset}: run 02_teacher with the "
        "same parameters first, or take -p preset mini -p backbone embedded"
    )


def train_mini_teacher(output: Path, *, progress: bool | None = None) -> pd.DataFrame:
    """Train the teacher that comes with the package, in about half an hour, and return its log.

    Resumes from ``output``. The weights go to ``output/mini-teacher.safetensors``.
    """
    parts = [select("mini", dataset) for dataset in MINI_TEACHER_DATA]
    config = parts[0].models.teacher
    features = [read_features(part, "train", config, progress=True) for part in parts]
    scorers = {
        part.dataset: evaluation.score_on(
            part.open("validation"), read_features(part, "validation", config)
        )
        for part in parts
    }
    teacher = VideoSlotModel(config, seed=MINI_TEACHER.seed)
    log = train(
        teacher,
        np.concatenate(features),
        MINI_TEACHER,
        output=output,
        validate=lambda model: _joined({name: score(model) for name, score in scorers.items()}),
        progress=progress,
    )
    save(teacher, output / "mini-teacher.safetensors")
    with paths.atomic(output / "log.csv") as temporary:
        log.to_csv(temporary, index=False)
    return log


def _joined(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores by data set, and the mean video FG-ARI over them."""
    joined = {f"{name}_{key}": value for name, own in scores.items() for key, value in own.items()}
    mean = sum(own["video_fg_ari"] for own in scores.values()) / len(scores)
    return {"video_fg_ari": mean} | joined


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


if __name__ == "__main__":
    train_mini_teacher(paths.BUILD / "mini-teacher", progress=True)
