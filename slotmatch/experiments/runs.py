"""One training from data set to weights: what ``python -m slotmatch train`` does.

The notebooks train, compare and show; this trains one model on as many GPUs as there are.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from accelerate.utils import gather_object

from slotmatch import paths
from slotmatch.data.decoded import DecodedClips
from slotmatch.evaluation import evaluate_samples, protocol_for, score_on
from slotmatch.experiments.select import Experiment, read_features, training_clips
from slotmatch.experiments.teachers import load_teacher, read_teacher, teacher_path
from slotmatch.model import ModelConfig, VideoSlotModel, save, start_from
from slotmatch.profiling import count_parameters
from slotmatch.reporting import results
from slotmatch.settings import Role, check_choice
from slotmatch.training import Frames, TrainConfig, processes, train
from slotmatch.training.estimates import Estimate, estimate

__all__ = ["foresee", "run"]

FRAMES = 24
"""Of a video whose features are cached: MOVi's and MiniMovi's number."""


def foresee(role: Role, experiment: Experiment) -> Estimate:
    """What a run will take, from the sizes alone: neither data nor weights are touched."""
    config, settings = _planned(role, experiment)
    n_videos = experiment.n_videos["train"] or 0
    return estimate(
        settings,
        config,
        teacher=experiment.models.teacher if role == "student" else None,
        from_frames=experiment.from_frames,
        n_frames=n_videos * FRAMES,
        n_processes=processes().num_processes,
    )


def run(
    role: Role,
    experiment: Experiment,
    output: Path,
    *,
    teacher_file: str = "",
    decoded: bool = False,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train a teacher or a student and return the file of its weights.

    ``output`` gets the checkpoint and ``log.csv`` while it trains, then ``ROLE.safetensors`` and
    ``results.json``, with the scores on the videos that are for choosing. The same call goes on
    where another one was stopped. A teacher is also left where ``experiments.load_teacher`` finds
    it. Started by ``accelerate launch`` its processes share the work, and the first one writes.

    Args:
        role: ``"teacher"`` or ``"student"``.
        experiment: what to train on, and how.
        output: the run's folder.
        teacher_file: of the student's teacher, see ``experiments.read_teacher``; empty: the one
            that ``experiments.load_teacher`` finds.
        decoded: keep decoded frames on disk (`slotmatch.data.decoded.DecodedClips`).
        workers: processes that read ahead.
        say: where sentences about the run go.

    Raises:
        ValueError: an unknown role, or arguments that do not fit together.
        FileNotFoundError: data or a teacher are not on this machine.
        RuntimeError: the weights of a backbone cannot be had, or a number is not finite.
    """
    started = time.monotonic()
    state = processes()
    tell = say if state.is_main_process else _silent
    config, settings = _planned(role, experiment)
    teacher, guide_clips, origin = None, None, ""
    if role == "student":
        teacher, origin = (
            read_teacher(teacher_file, config) if teacher_file else load_teacher(experiment)
        )
        tell(f"teacher: {origin}")
    with state.local_main_process_first():  # the others find what it made
        few = experiment.open("validation")
        model = VideoSlotModel(config, seed=settings.seed)
        if teacher is not None:
            start_from(model, teacher)
        clips = training_clips(experiment, model)
        features = read_features(experiment, "validation", model)
        if teacher is not None:
            guide_clips = read_features(experiment, "train", teacher)
    if decoded and isinstance(clips, Frames):
        clips = replace(clips, clips=DecodedClips(clips.clips, experiment.dataset))
    tell(f"{role} on {len(clips)} videos of {experiment.dataset}, preset {experiment.name}")
    if state.is_main_process:  # it times this machine
        say(str(foresee(role, experiment)))
    published = experiment.from_frames and not experiment.embedded
    protocol = protocol_for("slotcontrast_all" if published else "original", experiment.dataset)
    train(
        model,
        clips,
        settings,
        output=output,
        teacher=teacher,
        teacher_clips=guide_clips,
        validate=score_on(
            few,
            features,
            protocol=protocol,
            process=(state.process_index, state.num_processes),
            gather=gather_object,
        ),
        workers=workers,
    )
    path = output / f"{role}.safetensors"
    if state.is_main_process:
        save(model, path)
        if role == "teacher":
            save(model, teacher_path(experiment))
        ids, scores = evaluate_samples(model, few, features=features, protocol=protocol)
        content = results.run_results(
            config={"model": config, "training": asdict(settings), "teacher": origin},
            seeds=[settings.seed],
            dataset=experiment.dataset,
            split="validation",
            ids=ids,
            models={
                role: {
                    "metrics": scores,
                    "parameters": count_parameters(model)["total"][0],
                    "checkpoint": paths.checksum(path),
                }
            },
            started=started,
            protocol=asdict(protocol),
            processes=state.num_processes,
        )
        results.write_results(output / "results.json", content)
    tell(f"weights: {path}")
    return path


def _planned(role: Role, experiment: Experiment) -> tuple[ModelConfig, TrainConfig]:
    plans: Mapping[str, tuple[ModelConfig, TrainConfig]] = {
        "teacher": (experiment.models.teacher, experiment.teacher),
        "student": (experiment.models.student, experiment.student),
    }
    check_choice("role", role, Role)
    return plans[role]


def _silent(sentence: str) -> None:
    """Processes but the first say nothing."""
