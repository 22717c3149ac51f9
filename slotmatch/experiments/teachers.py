"""Where teachers come from: trained here, released by others, or with the package.

``python -m slotmatch.experiments.teachers train steady`` trains one that comes with the package,
``... measure steady`` scores it on validation videos and tells how far it follows itself.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from slotmatch import data, paths
from slotmatch.backbones import Features
from slotmatch.evaluation import constancy, evaluate, score_on
from slotmatch.experiments.select import (
    VIDEO_SETS,
    Experiment,
    read_features,
    select,
)
from slotmatch.model import PRESETS, ModelConfig, VideoSlotModel, load, save
from slotmatch.profiling import count_parameters
from slotmatch.reporting import results
from slotmatch.settings import Masks
from slotmatch.training import train

__all__ = [
    "load_teacher",
    "measure_teacher",
    "read_teacher",
    "released_path",
    "teacher_path",
    "train_shipped_teacher",
]

RELEASED: Mapping[str, str] = MappingProxyType(
    {
        "movi_c": "movi_c.ckpt",
        "movi_d": "movi_e.ckpt",
        "movi_e": "movi_e.ckpt",
        **dict.fromkeys(VIDEO_SETS, "ytvis.ckpt"),
    }
)
"""SlotContrast's released file by data set; where there is none, that of the same sizes."""

SHIPPED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"mini": ("minimovi_a", "minimovi_c"), "steady": data.EMBEDDED}
)
"""Teachers that come with the package, and what they were trained on in equal parts."""

N_DISTURBED = 8
"""Validation videos of each data set on which a teacher is compared with itself."""


def teacher_path(experiment: Experiment) -> Path:
    """Where ``02_teacher`` leaves a teacher that it trained, for ``03_distill`` to find."""
    backbone = experiment.models.teacher.backbone
    name = f"{experiment.dataset}.{experiment.name}.{backbone}.seed{experiment.teacher.seed}"
    return paths.cache_dir() / "teachers" / f"{name}.safetensors"


def load_teacher(experiment: Experiment) -> tuple[VideoSlotModel, str]:
    """The teacher to distil from, and where it comes from.

    That is the one ``02_teacher`` or ``slotmatch train teacher`` trained with the same parameters,
    or else the one that comes with the package; either only if it has the experiment's
    architecture. At the preset ``paper`` it is the one SlotContrast's authors released, if its file
    is at ``released_path``.

    Raises:
        FileNotFoundError: none exists; the message says how to get one.
        ValueError: a released file that is damaged or does not fit the student.
    """
    own = teacher_path(experiment)
    if own.is_file() and (teacher := load(own)).config == experiment.models.teacher:
        return teacher, f"trained here: {own.name}"
    released = released_path(experiment)
    if released is not None and released.is_file():
        return read_teacher(released, experiment.models.student)
    for name in SHIPPED:
        if experiment.models == PRESETS[name]:
            return load(f"{name}-teacher"), f"{name}-teacher, which comes with the package"
    raise FileNotFoundError(
        f"there is no teacher of preset {experiment.name} with backbone "
        f"{experiment.models.teacher.backbone} for {experiment.dataset}: run 02_teacher with the "
        f"same parameters first (or python -m slotmatch train teacher), {_or_released(released)}"
        "or take -p preset mini -p backbone embedded"
    )


def released_path(experiment: Experiment) -> Path | None:
    """Where a teacher that SlotContrast's authors released is looked for; None: there is none."""
    name = RELEASED.get(experiment.dataset)
    if experiment.name != "paper" or name is None:
        return None
    return paths.cache_dir() / "teachers" / "slotcontrast" / name


def _or_released(path: Path | None) -> str:
    if path is None:
        return ""
    return f"put {path.name}, which SlotContrast's authors released, at {path}, "


def read_teacher(name_or_path: str | Path, student: ModelConfig) -> tuple[VideoSlotModel, str]:
    """A teacher that ``slotmatch.model.load`` takes, and where it comes from.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or its slots cannot be compared with the student's.
    """
    teacher = load(name_or_path)
    released = Path(name_or_path).suffix == ".ckpt"
    origin = f"{'released by SlotContrast: ' if released else ''}{Path(name_or_path).name}"
    for name in ("n_slots", "slot_dim", "n_patches"):
        theirs, own = getattr(teacher.config, name), getattr(student, name)
        if theirs != own:
            raise ValueError(
                f"the teacher {name_or_path} has {name} {theirs}, the student {own}: take the "
                "data set and preset that the teacher was made for"
            )
    return teacher, f"{origin}, {teacher.config.backbone or 'from features'}"


def train_shipped_teacher(name: str, output: Path, *, progress: bool | None = None) -> pd.DataFrame:
    """Train a teacher that comes with the package, in about an hour, and return its log.

    Resumes from ``output``. The weights go to ``output/NAME-teacher.safetensors``.
    """
    backbone = "embedded" if name == "mini" else name
    parts = [select("mini", dataset, backbone=backbone) for dataset in SHIPPED[name]]
    settings = parts[0].teacher
    teacher = VideoSlotModel(parts[0].models.teacher, seed=settings.seed)
    features = [read_features(part, "train", teacher, progress=True) for part in parts]
    scorers = {
        part.dataset: score_on(part.open("validation"), read_features(part, "validation", teacher))
        for part in parts
    }
    together = np.concatenate([own.array for own in features if own is not None])
    log = train(
        teacher,
        Features(together, teacher.backbone.fingerprint() if teacher.backbone else ""),
        settings,
        output=output,
        validate=lambda model: _joined({name: score(model) for name, score in scorers.items()}),
        progress=progress,
    )
    save(teacher, output / f"{name}-teacher.safetensors")
    return log


def measure_teacher(name: str, dataset: str, output: Path) -> dict[str, Any]:
    """Write the result file of a teacher that comes with the package on validation videos.

    Scores of its decoder's masks and of slot attention's, and its ``constancy``: means over
    ``N_DISTURBED`` videos of ``evaluation.constancy`` under each disturbance, the ceiling of any
    student.
    """
    started = time.monotonic()
    model = load(f"{name}-teacher")
    part = select("mini", dataset, backbone="embedded" if name == "mini" else name)
    clips = part.open("validation")
    features = read_features(part, "validation", model)
    ways: dict[str, Masks] = {"teacher": "decoder", "teacher, attention masks": "attention"}
    models: dict[str, Any] = {
        way: {"metrics": evaluate(model, clips, features=features, masks=masks)}
        for way, masks in ways.items()
    }
    models["teacher"] |= {
        "constancy": {
            kind: {name: float(np.nanmean(values)) for name, values in found.items()}
            for kind, found in constancy(model, clips[:N_DISTURBED]).items()
        },
        "parameters": count_parameters(model)["total"][0],
        "checkpoint": paths.checksum(paths.WEIGHTS / f"{name}-teacher.safetensors"),
    }
    content = results.run_results(
        config={
            "model": model.config,
            "training": part.teacher,
            "trained on": dict.fromkeys(SHIPPED[name], part.n_videos["train"]),
            "disturbed videos": N_DISTURBED,
        },
        seeds=[part.teacher.seed],
        dataset=dataset,
        split="validation",
        ids=[clip.id for clip in clips],
        models=models,
        started=started,
    )
    return results.write_results(output, content)


def _joined(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Scores by data set, and the mean video FG-ARI over them."""
    joined = {f"{name}_{key}": value for name, own in scores.items() for key, value in own.items()}
    mean = sum(own["video_fg_ari"] for own in scores.values()) / len(scores)
    return {"video_fg_ari": mean} | joined


if __name__ == "__main__":
    task, name = sys.argv[1:]
    if task == "train":
        train_shipped_teacher(name, paths.BUILD / f"{name}-teacher", progress=True)
    elif task == "measure":
        for dataset in data.EMBEDDED:
            folder = f"teacher.{name}.{dataset}"
            measure_teacher(name, dataset, paths.RESULTS / folder / "results.json")
    else:
        raise SystemExit(f"{task!r} is neither train nor measure")
