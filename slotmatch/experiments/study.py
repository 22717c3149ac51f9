"""The run matrix of the study: every condition, data set and seed, and the result file of each.

``python -m slotmatch.experiments.study left`` tells what is missing and how long it will take,
``... run`` runs that in two processes, ``... run --cluster slurm --workers 64`` on a cluster; what
was stopped goes on. First each method's candidates are trained with one seed and scored on
validation videos; then the best of each, with all seeds, is scored on test videos.

A result file stays valid as long as what made it is the same: settings, data, weights of teacher
and backbones, and ``probe``, the first losses of a training on a few random features.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import submitit
import torch

from slotmatch import backbones, data, paths
from slotmatch.backbones import Features, weights_checksum
from slotmatch.data import Clip
from slotmatch.data.clips import ids_of
from slotmatch.evaluation import Followed, fidelity, follow, score_against, score_followed
from slotmatch.experiments.conditions import METHODS, Condition, candidates, planned
from slotmatch.experiments.select import Experiment, read_features
from slotmatch.experiments.standings import rounded
from slotmatch.experiments.students import train_student
from slotmatch.model import ModelConfig, VideoSlotModel, load, start_from
from slotmatch.reporting import results
from slotmatch.settings import Size, Split
from slotmatch.training import train

__all__ = [
    "Run",
    "chosen",
    "finals",
    "kept",
    "launch",
    "made_of",
    "main",
    "missing",
    "seeds_planned",
    "tried",
    "tryouts",
]

CHOSEN_ON = "minimovi_a"
"""The data set on whose validation videos a method's setting is chosen, for all data sets."""
SEEDS, MAIN_SEEDS = 5, 10
"""Of each method; the second of SlotMatch and the losses added to it, on ``CHOSEN_ON``."""
KEPT = (
    *("video_fg_ari", "image_fg_ari", "video_mbo", "image_mbo"),
    *("slot_cosine", "slot_cosine_last", "same_slot_objects"),
)
"""Metrics of the result files, see `kept`."""
DIGITS = 5
PROBE_VIDEOS, PROBE_FRAMES, PROBE_STEPS = 4, 24, 3
TOLERANCES = (1e-4, 1e-3, 1e-3, 1.0, 1e-2, 1.0)
"""Relative, of a probe's losses and gradient norms, step by step.

Rounding differs from one processor to another, and Adam's steps, as large for a small gradient as
for a large one, blow it up: of later gradients little more than the size can be held to.
"""


@dataclass(frozen=True)
class Run:
    """One training of the matrix, and the videos that it is scored on."""

    dataset: str
    method: str
    setting: str  # of the candidates
    seed: int
    split: Split
    preset: Size = "mini"

    @property
    def condition(self) -> Condition:
        """How its student is trained."""
        return candidates()[self.method][self.setting]

    @property
    def experiment(self) -> Experiment:
        """With the student that it trains."""
        return planned(self.condition, self.dataset, self.seed, preset=self.preset)

    @property
    def name(self) -> str:
        """Of its files."""
        return ".".join(part for part in (self.method, self.setting, f"seed{self.seed}") if part)

    @property
    def path(self) -> Path:
        """Its result file: among the committed ones if its numbers mean something."""
        folder = paths.RESULTS / "study" if self.preset == "mini" else self.weights.parents[1]
        return folder / self.dataset / self.split / f"{self.name}.json"

    @property
    def weights(self) -> Path:
        """The student's, from which another split is scored without training again."""
        folder = paths.cache_dir() / "study" / self.preset / self.dataset
        return folder / f"{self.name}.safetensors"


def tryouts(methods: Iterable[str] = METHODS, *, preset: Size = "mini") -> list[Run]:
    """Runs of every candidate of the methods that have a choice."""
    return [
        Run(CHOSEN_ON, method, setting, 0, "validation", preset)
        for method in methods
        if len(candidates()[method]) > 1
        for setting in candidates()[method]
    ]


def tried(method: str, *, preset: Size = "mini") -> dict[str, float]:
    """Mean video FG-ARI on validation videos of each of a method's candidates.

    Raises:
        FileNotFoundError: one of them was not tried yet.
    """
    runs = tryouts([method], preset=preset)
    found = {run.setting: results.read_results(run.path)["models"]["student"] for run in runs}
    return {name: float(np.nanmean(own["metrics"]["video_fg_ari"])) for name, own in found.items()}


def chosen(method: str, *, preset: Size = "mini") -> str:
    """The candidate that was best when `tried`; the only one of a method without a choice.

    Raises:
        FileNotFoundError: one of them was not tried yet.
    """
    scores = tried(method, preset=preset)
    return max(scores, key=scores.__getitem__) if scores else next(iter(candidates()[method]))


def seeds_planned(method: str, dataset: str = CHOSEN_ON) -> int:
    """How many seeds of a method the plan asks for."""
    main = method == "slotmatch" or method.startswith("with_")
    return MAIN_SEEDS if main and dataset == CHOSEN_ON else SEEDS


def finals(
    methods: Iterable[str] = METHODS,
    dataset: str = CHOSEN_ON,
    n_seeds: int | None = None,
    *,
    preset: Size = "mini",
) -> list[Run]:
    """Runs of the chosen candidate of each method, seed by seed, so that early ones compare.

    ``n_seeds`` None: of each method as many as planned.
    """
    settings = {method: chosen(method, preset=preset) for method in methods}
    return [
        Run(dataset, method, setting, seed, "test", preset)
        for seed in range(n_seeds or MAIN_SEEDS)
        for method, setting in settings.items()
        if seed < (n_seeds or seeds_planned(method, dataset))
    ]


def missing(runs: Iterable[Run]) -> list[Run]:
    """Those without a valid result file."""
    return [run for run in runs if not is_valid(run)]


def is_valid(run: Run) -> bool:
    """Whether a result file is there and would come out alike today."""
    if not run.path.is_file():
        return False
    found, now = json.loads(run.path.read_text())["config"], made_of(run)
    before, probe = found.pop("probe"), now.pop("probe")
    plain = json.loads(json.dumps(now))
    return found == plain and bool(np.isclose(before, probe, rtol=TOLERANCES, atol=0).all())


def made_of(run: Run) -> dict[str, Any]:
    """All that shapes a run's scores."""
    experiment = run.experiment
    return {
        "training": asdict(experiment.student),
        "inherits": list(run.condition.inherits),
        "model": asdict(experiment.models.student),
        "backbone": _eyes(experiment.models.student),
        "teacher": weights_checksum(_teacher()),
        "version": data.version(run.dataset),
        "videos": {part: experiment.n_videos[part] for part in ("train", run.split)},
        "probe": list(_probe(replace(run, dataset=CHOSEN_ON, seed=0, split="test"))),
    }


def kept(condition: Condition) -> tuple[str, ...]:
    """Metrics of a result file; where indices need not mean the same slots in student and teacher,
    also the cosine under the best permutation."""
    pairing = condition.training.get("correspondence", "index")
    alike = pairing == "index" and "initial_slots" in condition.inherits
    return KEPT if alike else (*KEPT, "slot_cosine_permuted")


@cache
def _probe(run: Run) -> tuple[float, ...]:
    """Losses and gradient norms of a run's first steps on random features."""
    experiment = run.experiment
    teacher, student = _teacher(), _student(experiment)
    start_from(student, teacher, parts=run.condition.inherits)
    generator = torch.Generator().manual_seed(0)

    def features(model: VideoSlotModel) -> torch.Tensor:
        size = (model.config.n_patches, model.config.feature_dim)
        return torch.randn(PROBE_VIDEOS, PROBE_FRAMES, *size, generator=generator)

    own, theirs = features(student), features(teacher)
    config = replace(experiment.student, steps=PROBE_STEPS, warmup_steps=0, log_every=1)
    guide = {"teacher": teacher, "teacher_clips": theirs} if config.distils else {}
    with tempfile.TemporaryDirectory() as folder:
        log = train(student, own, config, output=Path(folder), progress=False, **guide)  # type: ignore[arg-type]
    return tuple(float(f"{value:.6g}") for value in log[["loss", "grad_norm"]].to_numpy().ravel())


def execute(run: Run) -> None:
    """Train a run's student, or take the one that is there, and write its scores."""
    started = time.monotonic()
    experiment = run.experiment
    eyes = experiment.models.student.backbone
    clips, features, theirs = _scored_on(run.dataset, run.preset, "validation", eyes)
    student, log = train_student(
        experiment,
        experiment.student,
        _teacher(),
        run.weights,
        inherits=run.condition.inherits,
        validate=score_against(theirs, clips, features),
    )
    clips, features, theirs = _scored_on(run.dataset, run.preset, run.split, eyes)
    own = follow(student, clips, features)
    scores = score_followed(own, clips) | fidelity(own, theirs, clips)
    curve = log.filter(like="validation_").dropna().round(DIGITS)
    entry = {
        "metrics": rounded({name: scores[name] for name in kept(run.condition)}),
        "curve": {"step": log.step[curve.index].tolist()} | curve.to_dict("list"),
    }
    content = results.run_results(
        config=made_of(run),
        seeds=[run.seed],
        dataset=run.dataset,
        split=run.split,
        ids=ids_of(clips),
        models={"student": entry},
        started=started,
    )
    results.write_results(run.path, content)


@cache
def _teacher() -> VideoSlotModel:
    return load("mini-teacher")


@cache
def _eyes(model: ModelConfig) -> str:
    assert model.backbone is not None
    assert model.image_size is not None
    return weights_checksum(backbones.build(model.backbone, image_size=model.image_size))


def _student(experiment: Experiment) -> VideoSlotModel:
    return VideoSlotModel(experiment.models.student, seed=experiment.student.seed)


@lru_cache(maxsize=2)
def _scored_on(
    dataset: str, preset: Size, split: Split, eyes: str | None
) -> tuple[Sequence[Clip], Features, list[Followed]]:
    """Clips of a split, their features by a student's backbone, and what the teacher sees there."""
    plan, teacher = planned(Condition(), dataset, preset=preset), _teacher()
    models = {own.config.backbone: own for own in (_student(plan), teacher)}
    clips = plan.open(split)
    features = read_features(plan, split, models[eyes])
    assert features is not None
    return clips, features, follow(teacher, clips, read_features(plan, split, teacher))


class Worker:
    """Runs one after the other, in a process of its own; goes on after a preemption."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs

    def __call__(self) -> int:
        torch.set_num_threads(1)
        for run in missing(self.runs):
            execute(run)
        return len(self.runs)

    def checkpoint(self) -> Any:
        """What Slurm queues again when it takes the machine away."""
        return submitit.helpers.DelayedSubmission(self)


def launch(
    runs: Sequence[Run], *, n_workers: int = 2, cluster: str = "local", **parameters: Any
) -> None:
    """Run all that is missing, in so many processes at a time, and wait.

    Args:
        runs: of the matrix.
        n_workers: jobs of one core each.
        cluster: of submitit's ``AutoExecutor``: ``"local"``, ``"slurm"`` or ``"debug"``.
        parameters: of the executor, such as ``slurm_partition``.

    Raises:
        RuntimeError: a job failed; the message says where its log is.
    """
    left = missing(runs)
    executor = submitit.AutoExecutor(folder=paths.BUILD / "study", cluster=cluster)
    executor.update_parameters(timeout_min=24 * 60, cpus_per_task=1, **parameters)
    shards = [left[first::n_workers] for first in range(min(n_workers, len(left)))]
    jobs = [executor.submit(Worker(shard)) for shard in shards]
    try:
        for job in jobs:
            try:
                job.result()
            except submitit.core.utils.UncompletedJobError as error:
                raise RuntimeError(
                    f"job {job.job_id} failed, its log: {job.paths.stderr}"
                ) from error
    except BaseException:
        for job in jobs:
            job.cancel()
        raise


def left(runs: Sequence[Run]) -> str:
    """How many runs are missing, and how long they take, from those that are there."""
    open_runs = missing(runs)
    done = [json.loads(run.path.read_text()) for run in runs if run not in open_runs]
    seconds = [found["wall_seconds"] for found in done]
    needed = f", {np.median(seconds) * len(open_runs) / 60:.0f} core-minutes" if seconds else ""
    return f"{len(open_runs)} of {len(runs)} runs are left{needed}"


def _read_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m slotmatch.experiments.study")
    parser.add_argument("task", choices=("left", "run"))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--dataset", default=CHOSEN_ON, choices=data.EMBEDDED)
    parser.add_argument("--preset", default="mini", choices=("mini", "smoke"))
    parser.add_argument("--seeds", type=int, help="of each method; else as many as planned")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--cluster", default="local", choices=("local", "slurm"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    """Run the command line."""
    asked = _read_arguments(arguments)
    tried = tryouts(asked.methods, preset=asked.preset)
    print(f"to choose from: {left(tried)}", flush=True)
    if asked.task == "run":
        launch(tried, n_workers=asked.workers, cluster=asked.cluster)
    if missing(tried):
        print("what is scored on test videos depends on them")
        return
    scored = finals(asked.methods, asked.dataset, asked.seeds, preset=asked.preset)
    print(f"to be scored on test videos: {left(scored)}", flush=True)
    if asked.task == "run":
        launch(scored, n_workers=asked.workers, cluster=asked.cluster)


if __name__ == "__main__":
    from slotmatch.experiments import study  # jobs look for their class there, not in __main__

    study.main(sys.argv[1:])
