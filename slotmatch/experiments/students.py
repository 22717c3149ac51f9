"""Students of one data set: how one is trained, what settings were tried, and other seeds.

``python -m slotmatch.experiments.students tried`` trains a student with each of the settings in
`tried` and scores it on validation videos; ``... seeds`` runs ``03_distill`` with five seeds, or
those named, and keeps their test scores. Both write the result files that ``03_distill`` shows.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from joblib import Parallel, delayed, parallel_config

from slotmatch import paths
from slotmatch.backbones import weights_checksum
from slotmatch.data.clips import ids_of
from slotmatch.evaluation import constant_slots, evaluate, fidelity, follow, score_against
from slotmatch.experiments.select import Experiment, read_features, select, training_clips
from slotmatch.experiments.teachers import load_teacher
from slotmatch.model import VideoSlotModel, save, start_from
from slotmatch.reporting import report, results
from slotmatch.training import TrainConfig, train
from slotmatch.training.loop import Validate

__all__ = ["RATES", "seeds", "train_student", "train_students", "tried", "try_all"]

RATES = (1e-3, 2e-3, 4e-3)
BETAS = (0.3, 1.0, 3.0, 10.0)
"""Learning rates and weights of the SlotMatch term that are tried."""
SEEDS = 5
KEPT = ("video_fg_ari", "video_mbo", "slot_cosine", "slot_cosine_last", "same_slot_objects")
"""Metrics of the other seeds' models."""
COMMITTED = {task: paths.RESULTS / "student" / f"{task}.json" for task in ("tried", "seeds")}


def train_student(
    experiment: Experiment,
    config: TrainConfig,
    teacher: VideoSlotModel,
    file: Path,
    *,
    inherits: Sequence[str] = ("initial_slots",),
    validate: Validate | None = None,
) -> tuple[VideoSlotModel, pd.DataFrame]:
    """A student with its own weights but for what it inherits, and the log of its training.

    That resumes; the student's weights go to ``file``. ``inherits`` are parts of its teacher that
    it starts from (`slotmatch.model.start_from`).
    """
    student = VideoSlotModel(experiment.models.student, seed=config.seed)
    start_from(student, teacher, parts=inherits)
    guided = config.distils
    log = train(
        student,
        training_clips(experiment, student),
        config,
        output=file.with_suffix(""),
        teacher=teacher if guided else None,
        teacher_clips=read_features(experiment, "train", teacher) if guided else None,
        validate=validate,
    )
    save(student, file)
    return student, log


def train_students(
    experiment: Experiment,
    teacher: VideoSlotModel,
    folder: Path,
    *,
    validate: Validate | None = None,
) -> dict[str, tuple[VideoSlotModel, pd.DataFrame, str]]:
    """All students of an experiment, in files of a folder: model, log and checksum of its file.

    Without a GPU they train side by side, each in a process of one thread, so that how many cores a
    machine has changes the time and not the order in which numbers are added.
    """
    files = {name: folder / f"{name}.safetensors" for name in experiment.students}
    for model in (VideoSlotModel(experiment.models.student), teacher):
        read_features(experiment, "train", model)  # computed once, and not by each process
    n_jobs = 1 if torch.cuda.is_available() else len(files)
    with parallel_config(backend="loky", inner_max_num_threads=1):
        trained = Parallel(n_jobs)(
            delayed(train_student)(experiment, config, teacher, files[name], validate=validate)
            for name, config in experiment.students.items()
        )
    return {
        name: (*own, paths.checksum(file))
        for (name, file), own in zip(files.items(), trained, strict=True)
    }


def tried(experiment: Experiment) -> dict[str, TrainConfig]:
    """The settings that were compared on validation videos, as many rates for each control.

    Beta is tried at the middle one of the learning rates, the rates at the chosen beta.
    """
    own = experiment.student
    found = {
        f"student, beta {beta:g}, learning rate {RATES[1]:g}": replace(
            own, match_weight=beta, learning_rate=RATES[1]
        )
        for beta in BETAS
    }
    for name, config in experiment.students.items():
        title = f"{name}, beta {own.match_weight:g}" if config.match_weight else name
        found |= {
            f"{title}, learning rate {rate:g}": replace(config, learning_rate=rate)
            for rate in RATES
        }
    return found


def try_all(
    experiment: Experiment, output: Path, configs: Mapping[str, TrainConfig]
) -> dict[str, Any]:
    """Train a student in each way; the content of a result file on validation videos."""
    started = time.monotonic()
    teacher, origin = load_teacher(experiment)
    clips = experiment.open("validation")
    theirs = follow(teacher, clips, read_features(experiment, "validation", teacher))
    constant = constant_slots(theirs)
    features = read_features(experiment, "validation", VideoSlotModel(experiment.models.student))
    models = {}
    for name, config in configs.items():
        student, log = train_student(
            experiment,
            config,
            teacher,
            output / f"{name}.safetensors",
            validate=score_against(theirs, clips, features),
        )
        own = follow(student, clips, features)
        validated = log.filter(like="validation_").dropna()
        models[name] = {
            "metrics": evaluate(student, clips, features=features)
            | fidelity(own, theirs, clips, constant=constant),
            "training": config,
            "validated": {"step": log.step[validated.index].tolist()} | validated.to_dict("list"),
        }
    return results.run_results(
        config={
            "model": experiment.models.student,
            "videos": experiment.n_videos["train"],
            "teacher": {"origin": origin, "weights": weights_checksum(teacher)},
        },
        seeds=[experiment.student.seed],
        dataset=experiment.dataset,
        split="validation",
        ids=ids_of(clips),
        models=models,
        started=started,
    )


def seeds(output: Path, numbers: Sequence[int]) -> dict[str, Any]:
    """Run ``03_distill`` with each seed; what is kept of its result files."""
    runs = {}
    for seed in numbers:
        folder = output / f"seed{seed}"
        source, executed = paths.NOTEBOOKS / "03_distill.ipynb", folder / "03_distill.ipynb"
        report.run_notebook(source, executed, {"seed": seed, "output": "run"})
        runs[str(seed)] = _kept(results.read_results(folder / "run" / "results.json"))
    return {"runs": runs}


def _kept(found: Mapping[str, Any]) -> dict[str, Any]:
    models = {
        name: {"metrics": {key: own["metrics"][key] for key in KEPT if key in own["metrics"]}}
        for name, own in found["models"].items()
    }
    return {"seeds": found["seeds"], "data": found["data"], "models": models}


if __name__ == "__main__":
    task, *names = sys.argv[1:]
    folder = paths.BUILD / "students"
    if task == "tried":
        experiment = select("mini", "minimovi_a")
        configs = tried(experiment)
        chosen = {name: configs[name] for name in names or configs}
        results.write_results(COMMITTED[task], try_all(experiment, folder, chosen))
    elif task == "seeds":
        numbers = [int(name) for name in names] or range(SEEDS)
        if len(numbers) < 2:
            raise SystemExit("give two seeds or more: one says nothing of the luck of training")
        content = seeds(folder, numbers)
        with paths.atomic(COMMITTED[task]) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
    else:
        raise SystemExit(f"{task!r} is neither tried nor seeds")
