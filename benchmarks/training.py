"""(c) A step of training: plain and fast, from cached features and with the backbone in the loop.

Measured on `slotmatch.training.train` itself, by the clock of its log.
"""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.comparison import Comparison, Settings, random_video
from slotmatch.experiments import MINI_STUDENT, MINI_TEACHER, PAPER
from slotmatch.model import PRESETS, ModelConfig, VideoSlotModel
from slotmatch.model.plain import as_written
from slotmatch.profiling import take_turns
from slotmatch.training import TrainConfig, train

__all__ = ["measure"]


@dataclass(frozen=True)
class Case:
    """A training to take a few steps of; with a teacher if it distils."""

    student: ModelConfig
    teacher: ModelConfig | None
    training: TrainConfig
    steps: int

    @property
    def config(self) -> TrainConfig:
        """The training, cut to a few steps that are all timed."""
        return replace(
            self.training, steps=self.steps, warmup_steps=0, log_every=1, flip_probability=0.0
        )


@dataclass(frozen=True)
class RandomClip:
    """A video of noise."""

    id: str
    video: np.ndarray


def cases(settings: Settings) -> dict[str, Case]:
    """What is trained, by name."""
    mini, movi_e = PRESETS["mini"], PRESETS["movi_e"]
    if settings.quick:
        small = replace(MINI_STUDENT, batch_size=1, clip_length=2, doublings=())
        return {"mini student": Case(mini.student, mini.teacher, small, 1)}
    # The paper's batch of 64 clips is for large GPUs: this is the smallest that has a contrast.
    paper = replace(PAPER, match_weight=1.0, batch_size=1, clip_length=2)
    return {
        "mini teacher": Case(mini.teacher, None, MINI_TEACHER, 1),
        "mini student": Case(mini.student, mini.teacher, MINI_STUDENT, 1),
        "movi_e student": Case(movi_e.student, movi_e.teacher, paper, 1),
    }


def measure(settings: Settings) -> Iterator[Comparison]:
    """A comparison with the plain model that reads frames, for each training."""
    for name, case in cases(settings).items():
        fast = VideoSlotModel(case.student, pretrained=False)
        teacher = VideoSlotModel(case.teacher, pretrained=False) if case.teacher else None
        side = (case.teacher or case.student).image_size
        assert side is not None
        n_frames = case.config.clip_length
        frames = [RandomClip(str(i), random_video(n_frames, side)) for i in range(2)]
        seen = features(case.student)
        wanted = features(case.teacher) if case.teacher else None
        jobs = {}
        for kind, model in {"plain": as_written(fast), "fast": fast}.items():
            jobs[f"{kind}, frames"] = step(model, case, frames, teacher)
            jobs[f"{kind}, cached features"] = step(model, case, seen, teacher, wanted)
        turns = take_turns(jobs, repeats=settings.repeats)
        clips = f"{case.config.batch_size} clips of {n_frames} frames"
        yield Comparison(f"(c) training, {name}, {clips}", "ms per step", "plain, frames", turns)


def features(config: ModelConfig) -> np.ndarray:
    """Features of two videos as a cache holds them, (N,T,P,F) in half precision: noise."""
    shape = (2, 12, config.n_patches, config.feature_dim)
    return np.random.default_rng(0).standard_normal(shape, np.float32).astype(np.float16)


def step(
    model: VideoSlotModel,
    case: Case,
    clips: Sequence[RandomClip] | np.ndarray,
    teacher: VideoSlotModel | None,
    teacher_clips: np.ndarray | None = None,
) -> Callable[[], dict[str, float]]:
    """The job that trains a little further and says how long a step took."""

    def job() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # so few steps on noise: slots may well be all one
            log = train(
                model,
                clips,
                case.config,
                output=Path(folder),
                teacher=teacher,
                teacher_clips=teacher_clips,
                progress=False,
            )
        return {"total": 1000 * float(log["seconds"].iloc[-1]) / case.steps}

    return job
