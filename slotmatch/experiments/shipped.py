"""Teachers that come with the package: trained, and measured on validation videos.

``python -m slotmatch.experiments.shipped train steady`` trains one, ``... measure steady`` scores
it and tells how far it follows itself when frames are disturbed.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slotmatch import data, paths
from slotmatch.backbones import Features
from slotmatch.evaluation import constancy, evaluate, score_on
from slotmatch.experiments.select import Experiment, read_features, select
from slotmatch.experiments.teachers import SHIPPED
from slotmatch.model import VideoSlotModel, load, save
from slotmatch.profiling import count_parameters
from slotmatch.reporting import results
from slotmatch.settings import Masks
from slotmatch.training import train

__all__ = ["measure_teacher", "train_shipped_teacher"]

N_DISTURBED = 8
"""Validation videos of each data set on which a teacher is compared with itself."""


def train_shipped_teacher(name: str, output: Path, *, progress: bool | None = None) -> pd.DataFrame:
    """Train a teacher that comes with the package, in about an hour, and return its log.

    Resumes from ``output``. The weights go to ``output/NAME-teacher.safetensors``.
    """
    parts = [_part(name, dataset) for dataset in SHIPPED[name]]
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


def _part(name: str, dataset: str) -> Experiment:
    """What a shipped teacher's training takes of one data set."""
    return select("mini", dataset, backbone="embedded" if name == "mini" else name)


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
