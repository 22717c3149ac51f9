"""Students with lighter decoders, beyond the paper: trained, scored and timed, or as committed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from slotmatch import data, paths
from slotmatch.backbones import weights_checksum
from slotmatch.data import Clip
from slotmatch.data.clips import ids_of
from slotmatch.evaluation import evaluate
from slotmatch.experiments.select import Experiment, lighter, read_features
from slotmatch.experiments.students import train_student
from slotmatch.experiments.teachers import load_teacher
from slotmatch.model import VideoSlotModel, load
from slotmatch.profiling import segmenting, take_turns, time_parts
from slotmatch.reporting import results
from slotmatch.settings import Masks, Role, choices

__all__ = ["committed_students", "lighter_students"]


def lighter_students(experiment: Experiment, output: Path, *, started: float) -> dict[str, Any]:
    """Train the student and narrower ones, score and time all; the content of a result file.

    Those have a half and a quarter of its decoder's width, and all else alike. The student is
    scored a second time without decoder, by slot attention's masks. The weights go to ``output``.

    Args:
        experiment: whose student is made lighter.
        output: the run's folder.
        started: ``time.monotonic()`` when the run began.

    Raises:
        FileNotFoundError: there is no teacher, or a real data set is not on this machine.
    """
    teacher, origin = load_teacher(experiment)
    models, checkpoints = {"teacher": teacher}, {}
    for name, variant in _variants(experiment).items():
        file = output / f"{name.replace(', decoder ', '-')}.safetensors"
        models[name], _ = train_student(variant, variant.student, teacher, file)
        checkpoints[name] = paths.checksum(file)
    clips = experiment.open("test")
    return results.run_results(
        config={
            "recipes": _recipes(experiment),
            "checkpoints": checkpoints,
            "teacher": {
                "config": teacher.config,
                "origin": origin,
                "weights": weights_checksum(teacher),
            },
        },
        seeds=[experiment.student.seed],
        dataset=experiment.dataset,
        split="test",
        ids=ids_of(clips),
        models=_scored_and_timed(experiment, clips, models),
        started=started,
    )


def committed_students(experiment: Experiment) -> dict[str, Any]:
    """What ``lighter_students`` gave for the preset ``mini``, from its committed result file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file belongs to another teacher, recipe or version of the data.
    """
    found = results.read_results(paths.RESULTS / "lighter" / "results.json")
    made = (found["config"]["recipes"], found["config"]["teacher"]["weights"])
    wanted = (
        json.loads(json.dumps(_recipes(experiment))),
        weights_checksum(load("mini-teacher")),
    )
    if made != wanted or found["data"]["version"] != data.version(experiment.dataset):
        raise ValueError(
            "the committed results belong to another teacher, recipe or data version than this "
            "package's: make new ones with -p train True"
        )
    return found


def _scored_and_timed(
    experiment: Experiment, clips: Sequence[Clip], models: Mapping[str, VideoSlotModel]
) -> dict[str, dict[str, Any]]:
    """The entries of the result file; the student has a second one, by its attention masks."""
    features = {role: read_features(experiment, "test", models[role]) for role in choices(Role)}
    ways: dict[str, tuple[VideoSlotModel, Masks]]
    ways = {name: (model, "decoder") for name, model in models.items()}
    ways["student, attention masks"] = (models["student"], "attention")
    jobs = {
        name: partial(time_parts, model, clips[0].video, decode=masks == "decoder")
        for name, (model, masks) in ways.items()
    }
    turns = take_turns(jobs, repeats=1 if experiment.name == "smoke" else 7)
    entries = {}
    for name, (model, masks) in ways.items():
        seen = features["teacher" if name == "teacher" else "student"]
        times = [turn["total"] for turn in turns[name]]
        entries[name] = {
            "metrics": evaluate(model, clips, features=seen, masks=masks),
            **asdict(segmenting(model, decode=masks == "decoder")),
            "ms_per_frame": float(np.median(times)),
            "ms_per_frame_turns": times,
        }
    return entries


def _variants(experiment: Experiment) -> dict[str, Experiment]:
    own = experiment.models.student.decoder_hidden
    narrow = {f"student, decoder {w}": lighter(experiment, w) for w in (own // 2, own // 4)}
    return {"student": experiment, **narrow}


def _recipes(experiment: Experiment) -> Mapping[str, Any]:
    return {
        name: {
            "model": asdict(variant.models.student),
            "training": asdict(variant.student),
        }
        for name, variant in _variants(experiment).items()
    }
