"""What less precision changes: the models that come with the package, in both, on test videos.

``python -m slotmatch.experiments.precision minimovi_a ...`` writes the result files that the book's
table is made from; with no name it does so for all four sets. ``--videos 20`` takes the first 20 of
each alone. ``--precision bf16`` is half precision, which all that a model computes can have;
``--precision int8`` is an ONNX file's, of its backbone's convolutions; both are the default.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from slotmatch import data, evaluation, metrics, paths
from slotmatch.data import Clip
from slotmatch.data.clips import ids_of
from slotmatch.evaluation import Followed
from slotmatch.experiments.conditions import N_TEST
from slotmatch.experiments.shipped import identity
from slotmatch.experiments.standings import kept, rounded
from slotmatch.model import VideoSlotModel, load
from slotmatch.profiling import milliseconds, take_turns
from slotmatch.reporting import results
from slotmatch.settings import Role, choices
from slotmatch.sharing.onnx import OnnxModel, calibration_frames, export_onnx, frames_of

__all__ = ["calibration_clips", "measure", "path", "precision_table", "read_precision"]

FOLDERS = {"bf16": "precision", "int8": "int8"}
"""Where the result files of each precision are that single precision is compared with.

CPUs have no fp16.
"""
AGREEMENT = ("same_slot", "same_slot_objects", "slot_cosine", "slot_cosine_last")
"""Of a model with itself in single precision."""
N_CALIBRATION = 48
"""Training videos that the ranges of int8 are taken from."""
N_TIMED = 8
"""Frames of one turn in which a file is timed."""
NOT_MEASURED = "not measured"


def path(dataset: str, precision: str) -> Path:
    """The result file of a data set."""
    return paths.RESULTS / FOLDERS[precision] / f"{dataset}.json"


def read_precision() -> dict[str, dict[str, dict[str, Any]]]:
    """By precision, the result file of every embedded data set that was measured, if any."""
    return {
        precision: {
            name: results.read_results(path(name, precision))
            for name in data.EMBEDDED
            if path(name, precision).is_file()
        }
        for precision in FOLDERS
    }


def calibration_clips(names: Sequence[str]) -> list[Clip]:
    """The first training videos of these data sets, as many of each, to calibrate int8 with."""
    each = max(1, N_CALIBRATION // len(names))
    return [clip for name in names for clip in data.open(name, "train", n_videos=each)]


def measure(
    dataset: str, precision: str, output: Path, *, n_videos: int = N_TEST
) -> dict[str, Any]:
    """Write the result file of a data set's first test videos, by default as many as the study's.

    Teacher and student by their decoders' masks, each from frames to scores in single precision and
    in the other (``"teacher, bf16"``), whose entry also tells how far it agrees with the former.
    For int8 both are ONNX files, calibrated on training videos of all embedded data sets, and each
    has its size in bytes and the milliseconds a frame of several turns, on one thread.
    """
    started = time.monotonic()
    clips = data.open(dataset, "test", n_videos=n_videos)
    models = {role: load(f"mini-{role}") for role in choices(Role)}
    entries: dict[str, dict[str, Any]] = {}
    for role, model in models.items():
        (single, facts), (less, other_facts) = COMPARED[precision](model, clips)
        agreement = evaluation.fidelity(less, single, clips)
        entries[role] = identity(role, model) | {
            "precision": "no",
            **facts,
            "metrics": kept(evaluation.score_followed(single, clips)),
        }
        entries[entry(role, precision)] = identity(role, model) | {
            "precision": precision,
            **other_facts,
            "metrics": kept(evaluation.score_followed(less, clips))
            | rounded({name: agreement[name] for name in AGREEMENT}),
        }
    content = results.run_results(
        config={role: model.config for role, model in models.items()},
        seeds=[0],
        dataset=dataset,
        split="test",
        ids=ids_of(clips),
        models=entries,
        started=started,
    )
    return results.write_results(output, content)


Seen = tuple[list[Followed], dict[str, Any]]
"""What a model sees in some clips, and what else is known of it in this precision."""


def in_half(model: VideoSlotModel, clips: Sequence[Clip]) -> tuple[Seen, Seen]:
    """A model in single precision and in bf16."""
    single = evaluation.follow(model, clips)
    return (single, {}), (evaluation.follow(model, clips, precision="bf16"), {})


def in_int8(model: VideoSlotModel, clips: Sequence[Clip]) -> tuple[Seen, Seen]:
    """A model's ONNX file in single precision and with int8."""
    assert model.backbone is not None
    side = model.backbone.image_size
    frames = calibration_frames(calibration_clips(data.EMBEDDED), side)
    with tempfile.TemporaryDirectory() as folder:
        single = export_onnx(model, Path(folder) / "single.onnx")
        int8 = export_onnx(model, Path(folder) / "int8.onnx", calibration=frames)
        few = frames_of(clips[0].video[:N_TIMED], side)
        turns = take_turns({file.name: timing(file, few) for file in (single, int8)})
        first, second = (
            (
                follow_file(file, clips),
                {"bytes": file.stat().st_size, "ms_per_frame_turns": turns[file.name]},
            )
            for file in (single, int8)
        )
    return first, second


COMPARED: dict[str, Callable[[VideoSlotModel, Sequence[Clip]], tuple[Seen, Seen]]] = {
    "bf16": in_half,
    "int8": in_int8,
}


def follow_file(file: Path, clips: Sequence[Clip]) -> list[Followed]:
    """Slots and label maps of every clip by an ONNX file."""
    model, found = OnnxModel(file), []
    for clip in clips:
        steps = [*model.steps(frames_of(clip.video, model.image_size))]
        slots, masks = (
            torch.from_numpy(np.concatenate([step[name] for step in steps]))
            for name in ("slots", "masks")
        )
        found.append(Followed(slots, metrics.label_maps(masks, clip.labels.shape[1:])))
    return found


def timing(file: Path, frames: np.ndarray) -> Callable[[], float]:
    """The job that tells a file's milliseconds a frame."""
    model = OnnxModel(file, n_threads=1)
    return lambda: milliseconds(lambda: model(frames)) / len(frames)


def entry(role: str, precision: str) -> str:
    """A model's entry in less precision; that in single has the role's own name."""
    return f"{role}, {precision}"


def precision_table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> pd.DataFrame:
    """What less precision changes in each model on each embedded data set, over videos.

    The share of pixels, and of objects' alone, that keep their slot, and the differences of scores
    on the same videos, in points, with 95 % intervals. ``found`` is what ``read_precision``
    returns; a data set without a file is not measured.
    """
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for name in data.EMBEDDED:
        for precision in FOLDERS:
            content = found.get(precision, {}).get(name)
            texts = {} if content is None else results.numbers(content)
            for role in choices(Role):
                other = entry(role, precision)
                row: dict[str, Any] = {"videos": texts.get("n_videos")}
                for metric in ("same_slot", "same_slot_objects"):
                    row[results.FIDELITY[metric]] = texts.get(f"{other}_{metric}")
                for metric, heading in results.HEADINGS.items():
                    row[f"{heading}, minus single"] = content and results.difference(
                        content, other, role, metric
                    )
                rows[name, role, precision] = {
                    heading: NOT_MEASURED if own is None else str(own)
                    for heading, own in row.items()
                }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.rename_axis(["data set", "model", "precision"])


def main(arguments: Sequence[str]) -> None:
    """Measure the data sets that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m slotmatch.experiments.precision")
    parser.add_argument("datasets", nargs="*", metavar="NAME", help=", ".join(data.EMBEDDED))
    parser.add_argument("--videos", type=int, default=N_TEST, help="test videos (%(default)s)")
    parser.add_argument(
        "--precision", choices=[*FOLDERS], help="compared with single; default: one after the other"
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.datasets if name not in data.EMBEDDED]:
        parser.error(f"{', '.join(unknown)} is not among {', '.join(data.EMBEDDED)}")
    for name in options.datasets or data.EMBEDDED:
        for precision in [options.precision] if options.precision else FOLDERS:
            measure(name, precision, path(name, precision), n_videos=options.videos)


if __name__ == "__main__":
    main(sys.argv[1:])
