"""Models that come with the package: trained, and measured on validation videos.

``python -m slotmatch.experiments.shipped train steady teacher`` trains a teacher, ``... student``
its student. ``... measure steady teacher`` scores it and tells how far it follows itself when
frames are disturbed; ``... measure steady student``, how far the student follows the teacher.
``... picture steady student`` paints what both find in a video from the middle of the ranking.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from slotmatch import data, paths
from slotmatch.backbones import Features
from slotmatch.data import Clip
from slotmatch.evaluation import (
    constancy,
    constant_slots,
    evaluate,
    fidelity,
    follow,
    score_against,
    score_on,
)
from slotmatch.experiments.select import Experiment, example_clips, read_features, select
from slotmatch.experiments.teachers import SHIPPED
from slotmatch.model import VideoSlotModel, load, save, start_from
from slotmatch.profiling import count_parameters
from slotmatch.reporting import plots, results
from slotmatch.segmentation import segment
from slotmatch.settings import Masks, Role, choices
from slotmatch.training import train
from slotmatch.training.loop import Validate

__all__ = ["measure_student", "measure_teacher", "picture", "train_shipped"]

N_DISTURBED = 8
"""Validation videos of each data set on which a teacher is compared with itself."""


def train_shipped(
    name: str, role: Role, output: Path, *, seed: int = 0, progress: bool | None = None
) -> pd.DataFrame:
    """Train a model that comes with the package, in an hour or less, and return its log.

    A student follows the teacher that comes with the package. Resumes from ``output``. The weights
    go to ``output/NAME-ROLE.safetensors``.
    """
    parts = [_part(name, dataset, seed) for dataset in SHIPPED[name]]
    experiment = parts[0]
    settings = getattr(experiment, role)
    model = VideoSlotModel(getattr(experiment.models, role), seed=seed)
    teacher = teacher_clips = None
    if role == "student":
        teacher = load(f"{name}-teacher")
        start_from(model, teacher, parts=experiment.inherited)
        teacher_clips = _together(parts, teacher)
    log = train(
        model,
        _together(parts, model),
        settings,
        output=output,
        teacher=teacher,
        teacher_clips=teacher_clips,
        validate=_validation(parts, model, teacher),
        progress=progress,
    )
    save(model, output / f"{name}-{role}.safetensors")
    return log


def _together(parts: Sequence[Experiment], model: VideoSlotModel) -> Features:
    """Features of all training videos, one data set after the other."""
    found = [read_features(part, "train", model, progress=True) for part in parts]
    arrays = [features.array for features in found if features is not None]
    assert model.backbone is not None
    return Features(np.concatenate(arrays), model.backbone.fingerprint())


def _validation(
    parts: Sequence[Experiment], model: VideoSlotModel, teacher: VideoSlotModel | None
) -> Validate:
    """Scores by data set and the mean video FG-ARI; with a teacher, how far it is followed too."""
    scorers = {}
    for part in parts:
        clips, features = part.open("validation"), read_features(part, "validation", model)
        if teacher is None:
            scorers[part.dataset] = score_on(clips, features)
        else:
            theirs = follow(teacher, clips, read_features(part, "validation", teacher))
            scorers[part.dataset] = score_against(theirs, clips, features)

    def validate(model: VideoSlotModel) -> dict[str, float]:
        scores = {dataset: score(model) for dataset, score in scorers.items()}
        mean = sum(own["video_fg_ari"] for own in scores.values()) / len(scores)
        return {"video_fg_ari": mean} | {
            f"{dataset}_{key}": value
            for dataset, own in scores.items()
            for key, value in own.items()
        }

    return validate


def measure_teacher(name: str, dataset: str, output: Path) -> dict[str, Any]:
    """Write the result file of a teacher that comes with the package on validation videos.

    Scores of its decoder's masks and of slot attention's, and its ``constancy``: means over
    ``N_DISTURBED`` videos of ``evaluation.constancy`` under each disturbance, the ceiling of any
    student.
    """
    started = time.monotonic()
    model = load(f"{name}-teacher")
    part = _part(name, dataset)
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
    } | _identity(name, "teacher", model)
    return _write(name, "teacher", part, clips, models, started, output)


def measure_student(name: str, dataset: str, output: Path) -> dict[str, Any]:
    """Write the result file of a student that comes with the package on validation videos.

    Its scores, and how far it follows its teacher (``evaluation.fidelity``) beside a constant that
    was fitted to the teacher's slots on the first training videos, as many as these.
    """
    started = time.monotonic()
    models = {role: load(f"{name}-{role}") for role in ("teacher", "student")}
    part = _part(name, dataset)
    clips = part.open("validation")
    features = {role: read_features(part, "validation", model) for role, model in models.items()}
    followed = {role: follow(model, clips, features[role]) for role, model in models.items()}
    train_features = read_features(part, "train", models["teacher"])
    assert train_features is not None
    others = part.open("train")[: len(clips)]
    constant = constant_slots(follow(models["teacher"], others, train_features.array[: len(clips)]))
    agreement = fidelity(followed["student"], followed["teacher"], clips, constant=constant)
    entries = {
        role: {"metrics": evaluate(model, clips, features=features[role])}
        | _identity(name, role, model)
        for role, model in models.items()
    }
    entries["student"]["metrics"] |= agreement
    return _write(name, "student", part, clips, entries, started, output)


def picture(name: str, dataset: str, output: Path) -> None:
    """A validation video from the middle of the teacher's ranking, with the slots of both."""
    models = {role: load(f"{name}-{role}") for role in ("teacher", "student")}
    part = _part(name, dataset)
    clips = part.open("validation")
    features = read_features(part, "validation", models["teacher"])
    scores = evaluate(models["teacher"], clips, features=features)
    (clip,) = example_clips(clips, scores, 1)
    masks = {role: segment(clip.video, model) for role, model in models.items()}
    with plots.style():
        figure = plots.mask_grid(clip.video, {"truth": clip.labels, **masks})
    with paths.atomic(output) as temporary:
        figure.savefig(temporary, dpi=100)


def _identity(name: str, role: str, model: VideoSlotModel) -> dict[str, Any]:
    return {
        "parameters": count_parameters(model)["total"][0],
        "checkpoint": paths.checksum(paths.WEIGHTS / f"{name}-{role}.safetensors"),
    }


def _write(
    name: str,
    role: Role,
    part: Experiment,
    clips: Sequence[Clip],
    models: dict[str, Any],
    started: float,
    output: Path,
) -> dict[str, Any]:
    settings = getattr(part, role)
    content = results.run_results(
        config={
            "model": getattr(part.models, role),
            "training": settings,
            "trained on": dict.fromkeys(SHIPPED[name], part.n_videos["train"]),
        }
        | ({"disturbed videos": N_DISTURBED} if role == "teacher" else {}),
        seeds=[settings.seed],
        dataset=part.dataset,
        split="validation",
        ids=[clip.id for clip in clips],
        models=models,
        started=started,
    )
    return results.write_results(output, content)


def _part(name: str, dataset: str, seed: int = 0) -> Experiment:
    """What a shipped model's training takes of one data set."""
    return select("mini", dataset, backbone="embedded" if name == "mini" else name, seed=seed)


if __name__ == "__main__":
    task, name, role = sys.argv[1:]
    if role not in choices(Role):
        raise SystemExit(f"{role!r} is neither of {', '.join(choices(Role))}")
    if task == "train":
        train_shipped(name, cast("Role", role), paths.BUILD / f"{name}-{role}", progress=True)
    elif task == "measure":
        measure = {"teacher": measure_teacher, "student": measure_student}[role]
        for dataset in data.EMBEDDED:
            measure(name, dataset, paths.RESULTS / f"{role}.{name}.{dataset}" / "results.json")
    elif task == "picture":
        picture(name, data.EMBEDDED[0], paths.REPOSITORY / "book" / "figures" / f"{name}.png")
    else:
        raise SystemExit(f"{task!r} is none of train, measure and picture")
