"""What half precision changes: the models that come with the package, in both, on test videos.

``python -m slotmatch.experiments.precision minimovi_a ...`` writes the result files that the book's
table is made from; with no name it does so for all four sets. ``--videos 20`` takes the first 20 of
each alone.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from slotmatch import data, evaluation, paths
from slotmatch.experiments.conditions import N_TEST
from slotmatch.experiments.shipped import identity
from slotmatch.experiments.standings import kept, rounded
from slotmatch.model import load
from slotmatch.reporting import results
from slotmatch.settings import Precision, Role, choices

__all__ = ["measure", "path", "precision_table", "read_precision"]

HALF: Precision = "bf16"
"""What single precision is compared with: CPUs have no fp16."""
AGREEMENT = ("same_slot", "same_slot_objects", "slot_cosine", "slot_cosine_last")
"""Of a model with itself in single precision."""
NOT_MEASURED = "not measured"


def path(dataset: str) -> Path:
    """The result file of a data set."""
    return paths.RESULTS / "precision" / f"{dataset}.json"


def read_precision() -> dict[str, dict[str, Any]]:
    """The result file of every embedded data set that was measured; there may be none."""
    found = {name: path(name) for name in data.EMBEDDED}
    return {name: results.read_results(own) for name, own in found.items() if own.is_file()}


def measure(dataset: str, output: Path, *, n_videos: int = N_TEST) -> dict[str, Any]:
    """Write the result file of a data set's first test videos, by default as many as the study's.

    Teacher and student by their decoders' masks, each from frames to scores in single precision and
    in bf16 (``"teacher, bf16"``), whose entry also tells how far it agrees with the former.
    """
    started = time.monotonic()
    clips = data.open(dataset, "test", n_videos=n_videos)
    models = {role: load(f"mini-{role}") for role in choices(Role)}
    entries: dict[str, dict[str, Any]] = {}
    for role, model in models.items():
        single = evaluation.follow(model, clips)
        half = evaluation.follow(model, clips, precision=HALF)
        agreement = evaluation.fidelity(half, single, clips)
        entries[role] = identity(role, model) | {
            "precision": "no",
            "metrics": kept(evaluation.score_followed(single, clips)),
        }
        entries[in_half(role)] = identity(role, model) | {
            "precision": HALF,
            "metrics": kept(evaluation.score_followed(half, clips))
            | rounded({name: agreement[name] for name in AGREEMENT}),
        }
    content = results.run_results(
        config={role: model.config for role, model in models.items()},
        seeds=[0],
        dataset=dataset,
        split="test",
        ids=[clip.id for clip in clips],
        models=entries,
        started=started,
    )
    return results.write_results(output, content)


def in_half(role: str) -> str:
    """A model's entry in half precision; that in single has the role's own name."""
    return f"{role}, {HALF}"


def precision_table(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What bf16 changes in each model on each embedded data set, with 95 % intervals over videos.

    The share of pixels, and of objects' alone, that keep their slot, and the differences of scores
    on the same videos, in points. A data set without a file is not measured.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name in data.EMBEDDED:
        content = found.get(name)
        texts = {} if content is None else results.numbers(content)
        for role in choices(Role):
            row: dict[str, Any] = {"videos": texts.get("n_videos")}
            for metric in ("same_slot", "same_slot_objects"):
                row[results.FIDELITY[metric]] = texts.get(f"{in_half(role)}_{metric}")
            for metric, heading in results.HEADINGS.items():
                row[f"{heading}, {HALF} - single"] = content and results.difference(
                    content, in_half(role), role, metric
                )
            rows[name, role] = {
                heading: NOT_MEASURED if own is None else str(own) for heading, own in row.items()
            }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["data set", "model"])


def main(arguments: Sequence[str]) -> None:
    """Measure the data sets that were named, or all."""
    parser = argparse.ArgumentParser(prog="python -m slotmatch.experiments.precision")
    parser.add_argument("datasets", nargs="*", metavar="NAME", help=", ".join(data.EMBEDDED))
    parser.add_argument("--videos", type=int, default=N_TEST, help="test videos (%(default)s)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.datasets if name not in data.EMBEDDED]:
        parser.error(f"{', '.join(unknown)} is not among {', '.join(data.EMBEDDED)}")
    for name in options.datasets or data.EMBEDDED:
        measure(name, path(name), n_videos=options.videos)


if __name__ == "__main__":
    main(sys.argv[1:])
