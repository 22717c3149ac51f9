"""The models that come with the package, and what is simple, on the test videos of each data set.

``python -m slotmatch.experiments.standings minimovi_a ...`` writes the result files that the tables
of the book are made from; with no name it does so for all four sets.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from slotmatch import data, evaluation, paths
from slotmatch.data import Clip
from slotmatch.data.clips import ids_of
from slotmatch.evaluation import baselines
from slotmatch.experiments.conditions import Condition, planned
from slotmatch.experiments.select import read_features
from slotmatch.experiments.shipped import identity
from slotmatch.model import load
from slotmatch.reporting import results
from slotmatch.settings import Role, Size, choices

__all__ = [
    "COLUMNS",
    "by_fact",
    "difference_table",
    "extremes",
    "facts",
    "kept",
    "measure",
    "path",
    "read_standings",
    "rounded",
    "worst",
]

KEPT = ("video_fg_ari", "image_fg_ari", "video_mbo", "image_mbo", "j_and_f", "identity_switches")
"""Metrics of the files, beside a student's fidelity."""
COLUMNS = {name: results.SCORES[name] for name in KEPT if name in results.SCORES} | {
    "identity_switches": "identity switches",
    "parameters": "parameters",
}
"""Columns of the table of a data set."""
DIGITS = 5
BLOCKS = (3, 4)
SMALL = 0.5
"""Share of an object's largest area below which it counts as mostly hidden."""


def path(dataset: str) -> Path:
    """The result file of a data set."""
    return paths.RESULTS / "standings" / f"{dataset}.json"


def read_standings() -> dict[str, dict[str, Any]]:
    """The result file of every embedded data set that was scored.

    Raises:
        FileNotFoundError: none was.
    """
    found = {name: path(name) for name in data.EMBEDDED}
    there = {name: results.read_results(own) for name, own in found.items() if own.is_file()}
    if not there:
        raise FileNotFoundError(
            "no data set was scored; run python -m slotmatch.experiments.standings"
        )
    return there


def measure(dataset: str, output: Path, *, preset: Size = "mini") -> dict[str, Any]:
    """Write the result file of a data set's test videos, as many as the study scores.

    Teacher and student by their decoders' masks and by slot attention's, k-means of whole videos on
    the features of each and on colours and places, told the true number of segments, a grid of
    blocks, and the oracle of the patch grid; and ``facts`` of each video.
    """
    started = time.monotonic()
    plan = planned(Condition(), dataset, preset=preset)
    clips = plan.open("test")
    models = {role: load(f"mini-{role}") for role in choices(Role)}
    features = {role: read_features(plan, "test", own) for role, own in models.items()}
    followed = {role: evaluation.follow(own, clips, features[role]) for role, own in models.items()}
    entries: dict[str, dict[str, Any]] = {}
    for role, model in models.items():
        ways = {
            role: evaluation.score_followed(followed[role], clips),
            f"{role}, attention masks": evaluation.evaluate(
                model, clips, features=features[role], masks="attention"
            ),
        }
        for name, scores in ways.items():
            entries[name] = identity(role, model) | {"metrics": kept(scores)}
    agreement = evaluation.fidelity(followed["student"], followed["teacher"], clips)
    entries["student"]["metrics"] |= rounded(agreement)
    for role, own in features.items():
        assert own is not None
        scores = baselines.kmeans_per_video(clips, own, "true")
        entries[f"k-means, {role}'s features"] = {"metrics": kept(scores)}
    grid = models["teacher"].config.grid
    simple = {
        "k-means, colours and places": baselines.kmeans_per_video(
            clips, baselines.colours_and_places(clips, grid), "true"
        ),
        "grid of blocks": baselines.block_grid(clips, *BLOCKS),
        "oracle of the patch grid": evaluation.grid_oracle(clips, grid),
    }
    entries |= {name: {"metrics": kept(scores)} for name, scores in simple.items()}
    content = results.run_results(
        config={role: model.config for role, model in models.items()},
        seeds=[0],
        dataset=dataset,
        split="test",
        ids=ids_of(clips),
        models=entries,
        started=started,
        facts=facts(clips),
    )
    return results.write_results(output, content)


def facts(clips: Sequence[Clip]) -> dict[str, list[float]]:
    """What may make a video hard, a value a video.

    ``objects``: their number. ``coverage``: share of pixels that belong to one. ``hidden``: share
    of objects and frames in which less than half of the object's largest area is in view.
    """
    found: dict[str, list[float]] = {"objects": [], "coverage": [], "hidden": []}
    for clip in clips:
        ids = np.unique(clip.labels[clip.labels > 0])
        areas = np.stack([(clip.labels == own).sum((1, 2)) for own in ids])
        found["objects"].append(len(ids))
        found["coverage"].append(round(float((clip.labels > 0).mean()), DIGITS))
        hidden = areas < SMALL * areas.max(axis=1, keepdims=True)
        found["hidden"].append(round(float(hidden.mean()), DIGITS))
    return found


def difference_table(found: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Student minus teacher of each data set in points, and how the student follows."""
    rows: dict[str, dict[str, Any]] = {}
    for name, content in found.items():
        texts = results.numbers(content)
        rows[name] = {
            heading: results.difference(content, "student", "teacher", metric)
            for metric, heading in results.HEADINGS.items()
        } | {
            results.FIDELITY[metric]: texts[f"student_{metric}"]
            for metric in ("slot_cosine", "slot_cosine_last", "same_slot_objects")
        }
    return pd.DataFrame(rows).T.rename_axis("student - teacher")


def by_fact(content: Mapping[str, Any], fact: str, n_groups: int = 5) -> pd.DataFrame:
    """Mean video FG-ARI of teacher and student in groups of videos alike in a fact, times 100.

    Groups hold equally many videos, or fewer groups where a fact has few values. The column of the
    fact holds its mean in each.
    """
    frame = pd.DataFrame({fact: content["facts"][fact]})
    for role in choices(Role):
        frame[role] = 100 * np.array(content["models"][role]["metrics"]["video_fg_ari"])
    groups = pd.qcut(frame[fact], n_groups, duplicates="drop")
    return frame.groupby(groups, observed=True).mean().reset_index(drop=True)


def extremes(content: Mapping[str, Any], n: int = 2) -> dict[str, list[int]]:
    """Numbers of the videos in which the student is farthest behind its teacher, and ahead."""
    teacher, student = (
        np.array(content["models"][role]["metrics"]["video_fg_ari"])
        for role in ("teacher", "student")
    )
    order = np.argsort(np.nan_to_num(student - teacher), kind="stable")
    return {"behind": order[:n].tolist(), "ahead": order[::-1][:n].tolist()}


def worst(content: Mapping[str, Any]) -> int:
    """Number of the video in which the student's video FG-ARI is lowest."""
    return int(np.nanargmin(content["models"]["student"]["metrics"]["video_fg_ari"]))


def kept(scores: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The metrics of a result file, rounded."""
    return rounded({name: scores[name] for name in KEPT})


def rounded(scores: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """To as many digits as are kept in a file of hundreds of videos."""
    return {name: np.round(values, DIGITS).tolist() for name, values in scores.items()}


if __name__ == "__main__":
    names = sys.argv[1:] or data.EMBEDDED
    if unknown := [name for name in names if name not in data.EMBEDDED]:
        raise SystemExit(f"{', '.join(unknown)} is not among {', '.join(data.EMBEDDED)}")
    for name in names:
        measure(name, path(name))
