"""Models that come with the package: trained, and measured on validation videos.

``python -m slotmatch.experiments.shipped train teacher`` trains the teacher, ``... train student``
its student, both on all embedded data sets. ``... measure teacher`` scores it and tells how far it
follows itself when frames are disturbed; ``... measure student``, how far the student follows it.
``... picture`` paints what both find in a video from the middle of the ranking, for the book and
for links to it.
"""

import sys
import time
from collections.abc import Sequence
from functools import cache
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
from slotmatch.model import VideoSlotModel, load, save, start_from
from slotmatch.profiling import count_parameters
from slotmatch.reporting import plots, results
from slotmatch.segmentation import segment
from slotmatch.settings import Masks, Role, check_choice, choices
from slotmatch.training import train
from slotmatch.training.loop import Validate

__all__ = [
    "identity",
    "measure_student",
    "measure_teacher",
    "picture",
    "social_picture",
    "train_shipped",
]

STUDENT_STEPS = 6000
"""Of the student: twice those of ``mini``, since it sees four data sets."""
N_DISTURBED = 8
"""Validation videos of each data set on which a teacher is compared with itself."""


def train_shipped(
    role: Role, output: Path, *, seed: int = 0, progress: bool | None = None
) -> pd.DataFrame:
    """Train a model that comes with the package, in an hour or less, and return its log.

    The student follows the teacher that comes with the package. Resumes from ``output``. The
    weights go to ``output/mini-ROLE.safetensors``.
    """
    parts = [_part(role, dataset, seed) for dataset in data.EMBEDDED]
    model = VideoSlotModel(getattr(parts[0].models, role), seed=seed)
    teacher = teacher_clips = None
    if role == "student":
        teacher = load("mini-teacher")
        start_from(model, teacher)
        teacher_clips = _together(parts, teacher)
    log = train(
        model,
        _together(parts, model),
        getattr(parts[0], role),
        output=output,
        teacher=teacher,
        teacher_clips=teacher_clips,
        validate=_validation(parts, model, teacher),
        progress=progress,
    )
    save(model, output / f"mini-{role}.safetensors")
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


def measure_teacher(dataset: str, output: Path) -> dict[str, Any]:
    """Write the result file of a teacher that comes with the package on validation videos.

    Scores of its decoder's masks and of slot attention's, and its ``constancy``: means over
    ``N_DISTURBED`` videos of ``evaluation.constancy`` under each disturbance, the ceiling of any
    student.
    """
    started = time.monotonic()
    model = load("mini-teacher")
    part = _part("teacher", dataset)
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
    } | identity("teacher", model)
    return _write("teacher", part, clips, models, started, output)


def measure_student(dataset: str, output: Path) -> dict[str, Any]:
    """Write the result file of a student that comes with the package on validation videos.

    Its scores, and how far it follows its teacher (``evaluation.fidelity``) beside a constant that
    was fitted to the teacher's slots on the first training videos, as many as these.
    """
    started = time.monotonic()
    models = _pair()
    part = _part("student", dataset)
    clips = part.open("validation")
    features = {role: read_features(part, "validation", model) for role, model in models.items()}
    followed = {role: follow(model, clips, features[role]) for role, model in models.items()}
    others = data.open(dataset, "train", n_videos=len(clips))
    constant = constant_slots(follow(models["teacher"], others))
    agreement = fidelity(followed["student"], followed["teacher"], clips, constant=constant)
    entries = {
        role: {"metrics": evaluate(model, clips, features=features[role])} | identity(role, model)
        for role, model in models.items()
    }
    entries["student"]["metrics"] |= agreement
    return _write("student", part, clips, entries, started, output)


def picture(dataset: str, output: Path) -> None:
    """A validation video from the middle of the teacher's ranking, with the slots of both."""
    clip, masks = _seen(dataset)
    with plots.style():
        figure = plots.mask_grid(clip.video, {"truth": clip.labels, **masks})
    with paths.atomic(output) as temporary:
        figure.savefig(temporary, dpi=100)


def social_picture(dataset: str, output: Path) -> None:
    """The same video for links to the book on other sites, in their 1200 x 630 pixels."""
    clip, masks = _seen(dataset)
    said = "A video as a large model sees it (above), and a small one that learned from its slots."
    figure = plots.banner(clip.video, masks, "SlotMatch, to run and to read", said)
    with paths.atomic(output) as temporary:
        figure.savefig(temporary)


@cache
def _seen(dataset: str) -> tuple[Clip, dict[str, np.ndarray]]:
    """A video from the middle of the ranking, and its label maps (t,h,w) by role."""
    models = _pair()
    part = _part("student", dataset)
    clips = part.open("validation")
    features = read_features(part, "validation", models["teacher"])
    scores = evaluate(models["teacher"], clips, features=features)
    (clip,) = example_clips(clips, scores, 1)
    return clip, {role: segment(clip.video, model) for role, model in models.items()}


def _pair() -> dict[str, VideoSlotModel]:
    return {role: load(f"mini-{role}") for role in choices(Role)}


def identity(role: str, model: VideoSlotModel) -> dict[str, Any]:
    """What an entry of a result file says of a model that comes with the package."""
    return {
        "parameters": count_parameters(model)["total"][0],
        "checkpoint": paths.checksum(paths.WEIGHTS / f"mini-{role}.safetensors"),
    }


def _write(
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
            "trained on": dict.fromkeys(data.EMBEDDED, part.n_videos["train"]),
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


def _part(role: Role, dataset: str, seed: int = 0) -> Experiment:
    """What a shipped model's training takes of one data set."""
    return select("mini", dataset, steps=STUDENT_STEPS if role == "student" else 0, seed=seed)


if __name__ == "__main__":
    task, *roles = sys.argv[1:]
    if (task, len(roles)) not in (("train", 1), ("measure", 1), ("picture", 0)):
        raise SystemExit("give train ROLE, measure ROLE or picture")
    for role in roles:
        check_choice("role", role, Role)
    if task == "train":
        train_shipped(cast("Role", roles[0]), paths.BUILD / f"mini-{roles[0]}", progress=True)
    elif task == "measure":
        measure = {"teacher": measure_teacher, "student": measure_student}[roles[0]]
        for dataset in data.EMBEDDED:
            measure(dataset, paths.RESULTS / f"{roles[0]}.mini.{dataset}" / "results.json")
    else:
        picture(data.EMBEDDED[0], paths.REPOSITORY / "book" / "figures" / "slots.png")
        social_picture(data.EMBEDDED[0], paths.REPOSITORY / "_static" / "social.png")
