"""Result files: what a run leaves behind, and the tables and the numbers computed from it."""

import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from slotmatch import data, paths
from slotmatch.profiling import times_faster
from slotmatch.reporting import stats

__all__ = [
    "FIDELITY",
    "HEADINGS",
    "SCORES",
    "comparison_table",
    "dashed",
    "difference",
    "environment",
    "half_precision",
    "intervals",
    "numbers",
    "read_results",
    "run_results",
    "score_table",
    "seeds_difference",
    "write_results",
]

REQUIRED = ("config", "seeds", "data", "models", "wall_seconds", "environment")
REQUIRED_OF_DATA = ("name", "version", "split", "ids")
PACKAGES = (
    "slotmatch",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scipy",
    "scikit-learn",
    "pybullet",
    "accelerate",
)
PERCENTAGES = frozenset(
    {
        *("video_fg_ari", "image_fg_ari", "video_mbo", "image_mbo", "j", "f", "j_and_f"),
        *("video_ari", "video_iou"),
        *("same_slot", "same_slot_objects", "map_ari"),
    }
)
"""Metrics in [0, 1] that papers print times 100."""
HEADINGS = {"video_fg_ari": "FG-ARI", "video_mbo": "mBO"}
"""The two that models are compared by, as short tables name them."""
SCORES = {
    "video_fg_ari": "FG-ARI, video",
    "image_fg_ari": "FG-ARI, image",
    "video_mbo": "mBO, video",
    "image_mbo": "mBO, image",
    "j_and_f": "J&F",
    "video_ari": "ARI, video",
    "video_iou": "mIoU, video",
}
"""Metrics that are printed and that a model card shows, and what they are called there."""
FIDELITY = {
    "slot_cosine": "slot cosine",
    "slot_cosine_first": "in the first frame",
    "slot_cosine_last": "in the last",
    "slot_cosine_permuted": "best permutation",
    "constant_cosine": "of a constant",
    "same_slot": "same slot, %",
    "same_slot_objects": "on objects, %",
    "map_ari": "ARI of label maps",
}
"""What ``slotmatch.evaluation.fidelity`` finds, as tables name it."""
LABELS = {
    "teacher": "Teacher",
    "student": "Student (SlotMatch)",
    "no_term": "Student, no term",
    "teacher_recipe": "Student, teacher's recipe",
}


def run_results(
    *,
    config: Any,
    seeds: Any,
    dataset: str,
    split: str,
    ids: Sequence[str],
    models: Mapping[str, Any],
    started: float,
    version: int | str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The content of a run's result file, for :func:`write_results`.

    Args:
        config: every setting that shaped the run.
        seeds: of everything random.
        dataset: what was scored; the file also names the version of these data.
        split: of the data set.
        ids: the videos that count.
        models: by name, in the order of the table, an entry of ``metrics`` (metric -> one value a
            video, in the order of ``ids``; nan where the video is skipped) and, where they exist,
            ``parameters`` (a count, frozen backbone included), ``ms_per_frame`` with
            ``ms_per_frame_turns`` and ``checkpoint`` (its :func:`slotmatch.paths.checksum`).
        started: ``time.monotonic()`` when the run began.
        version: of data that ``slotmatch.data`` does not know.
        more: further entries of the file.
    """
    if version is None:
        version = data.version(dataset)
    return {
        "config": config,
        "seeds": seeds,
        "data": {"name": dataset, "version": version, "split": split, "ids": ids},
        "models": models,
        **more,
        "wall_seconds": time.monotonic() - started,
        "environment": environment(),
    }


def write_results(path: str | os.PathLike[str], content: Mapping[str, Any]) -> dict[str, Any]:
    """Write what :func:`run_results` gave as JSON and return what was written.

    Entries may be added at every level. Arrays, dataclasses and paths are converted; nan becomes
    null.

    Raises:
        ValueError: a key is missing, or a metric has not one value a video.
    """
    _check(content)
    results = _plain(content)
    with paths.atomic(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a result file, with nan where a per-video value is null.

    Raises:
        FileNotFoundError: no such file; the message says what writes it.
        ValueError: it is damaged, or no result file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no results at {path}; run the notebook that writes them first")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        _check(results)
        for entry in results["models"].values():
            entry["metrics"] = {
                metric: [math.nan if value is None else float(value) for value in values]
                for metric, values in entry["metrics"].items()
            }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or no result file ({error}): delete it and run what wrote it again"
        ) from error
    return dict(results)


def _check(content: Mapping[str, Any]) -> None:
    if missing := [key for key in REQUIRED if key not in content]:
        raise ValueError(f"results lack {missing}; needed are {list(REQUIRED)}")
    if missing := [key for key in REQUIRED_OF_DATA if key not in content["data"]]:
        raise ValueError(f"results['data'] lacks {missing}; needed are {list(REQUIRED_OF_DATA)}")
    n_videos = len(content["data"]["ids"])
    for name, entry in content["models"].items():
        for metric, values in entry["metrics"].items():
            if len(values) != n_videos:
                raise ValueError(
                    f"{name} has {len(values)} values of {metric} for {n_videos} videos; "
                    "give one a video, nan for a skipped one"
                )


def comparison_table(results: Mapping[str, Any]) -> pd.DataFrame:
    """Teacher, student and its controls side by side, as they are printed.

    FG-ARI and mBO (whole videos, times 100) are means over videos with the interval of
    :func:`slotmatch.reporting.stats.mean_interval`, and so is how students follow the teacher.
    Other models in the results (baselines, oracle) follow below.
    """
    headings = dict(HEADINGS)
    metrics = {name for entry in results["models"].values() for name in entry["metrics"]}
    followed = ("slot_cosine", "same_slot_objects")
    headings |= {name: FIDELITY[name] for name in followed if name in metrics}
    costs = {"parameters": "parameters", "ms_per_frame": "ms per frame"}
    table = score_table(results, headings | costs)
    names = [name for name in LABELS if name in table.index]
    names += [name for name in table.index if name not in LABELS]
    return table.loc[names].rename(index=LABELS).rename_axis("model")


def score_table(results: Mapping[str, Any], headings: Mapping[str, str]) -> pd.DataFrame:
    """The texts of ``numbers`` for some metrics, a row for each model: metric -> its heading.

    A dash means that the quantity does not exist for that row.
    """
    texts, names = numbers(results), list(results["models"])
    columns = {
        heading: [texts.get(f"{name}_{metric}", "-") for name in names]
        for metric, heading in headings.items()
    }
    return pd.DataFrame(columns, index=names)


def dashed(table: pd.DataFrame) -> pd.DataFrame:
    """A table with a dash in every empty cell."""
    return table.astype(object).where(table.notna(), "-")


def difference(results: Mapping[str, Any], first: str, second: str, metric: str) -> str:
    """The mean of ``first - second`` over the same videos: ``"-3.9 [-5.9, -2.0]"``, times 100.

    Its interval is that of `slotmatch.reporting.stats.paired_difference`. Videos that are skipped
    in either model are left out.
    """
    scores = [results["models"][name]["metrics"][metric] for name in (first, second)]
    values = 100 * np.array(scores, float)  # None, a skipped video in a file, becomes nan
    found = stats.paired_difference(*values[:, ~np.isnan(values).any(axis=0)])
    return f"{found:+.1f}"


def seeds_difference(
    runs: Sequence[Mapping[str, Any]], first: str, second: str, metric: str
) -> str:
    """The mean of ``first - second`` over runs of several seeds on the same videos, times 100.

    Its interval counts seeds and videos as random (`slotmatch.reporting.stats.crossed`).
    Videos that are skipped in any run are left out.
    """
    scores = np.array(
        [[run["models"][name]["metrics"][metric] for run in runs] for name in (first, second)],
        float,
    )
    values = 100 * (scores[0] - scores[1])
    found = stats.crossed(values[:, ~np.isnan(values).any(axis=0)]).interval()
    return f"{found:+.1f}"


def intervals(results: Mapping[str, Any], metric: str) -> dict[str, stats.Interval]:
    """Mean of a metric over videos with its interval by model, times 100 where papers print that.

    Models without the metric, or skipped for every video, are left out.
    """
    found = {
        name: _interval(metric, entry["metrics"].get(metric, ()))
        for name, entry in results["models"].items()
    }
    return {name: own for name, own in found.items() if own is not None}


def numbers(results: Mapping[str, Any]) -> dict[str, str | float | int]:
    """Everything a sentence or a caption may quote from a result file, by name.

    For each model and metric ``<model>_<metric>`` is the text ``"70.1 [68.0, 72.2]"`` (mean and
    interval over videos; a single video has no interval) and ``<model>_<metric>_mean`` the bare
    mean. ``<model>_parameters`` and ``<model>_ms_per_frame`` are texts;
    ``<model>_fewer_parameters`` says how many times the teacher has more, ``<model>_speedup`` how
    many times it takes longer: the text ``"4.97 [4.90, 5.10]"`` of
    :func:`slotmatch.profiling.times_faster`. ``n_videos`` and ``wall_minutes`` are the run's own.
    Metrics that are skipped for every video are left out.
    """
    models = results["models"]
    quoted: dict[str, str | float | int] = {
        "n_videos": len(results["data"]["ids"]),
        "wall_minutes": results["wall_seconds"] / 60,
    }
    for name, entry in models.items():
        for metric, values in entry["metrics"].items():
            if interval := _interval(metric, values):
                digits = 1 if metric in PERCENTAGES else 2
                quoted[f"{name}_{metric}"] = f"{interval:.{digits}f}"
                quoted[f"{name}_{metric}_mean"] = interval.mean
        if entry.get("parameters"):
            quoted[f"{name}_parameters"] = f"{entry['parameters'] / 1e6:.2f} M"
        if entry.get("ms_per_frame"):
            quoted[f"{name}_ms_per_frame"] = f"{entry['ms_per_frame']:.1f}"
        teacher = {} if name == "teacher" else models.get("teacher", {})
        if entry.get("parameters") and teacher.get("parameters"):
            quoted[f"{name}_fewer_parameters"] = float(teacher["parameters"] / entry["parameters"])
        if entry.get("ms_per_frame_turns") and teacher.get("ms_per_frame_turns"):
            turns = (own["ms_per_frame_turns"] for own in (entry, teacher))
            quoted[f"{name}_speedup"] = str(times_faster(*turns))
    return quoted


def half_precision(results: Mapping[str, Any]) -> str | None:
    """The half precision that scores were computed in, if they were."""
    precision: str = results["config"].get("precision", "no")
    return None if precision == "no" else precision


def environment() -> dict[str, Any]:
    """What a run depended on besides its settings: versions, source revision and hardware."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "source": _source_revision(),
        "hardware": _hardware(),
    }


def _interval(metric: str, values: Iterable[float | None]) -> stats.Interval | None:
    """As papers print it; None where every video is skipped."""
    scored = np.array(list(values), float)  # None, a skipped video in a file, becomes nan
    scored = scored[~np.isnan(scored)]
    if not scored.size:
        return None
    return stats.mean_interval(scored).times(100 if metric in PERCENTAGES else 1)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _source_revision() -> dict[str, Any] | None:
    """The commit that ran, and whether the work tree had changes; None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _hardware() -> dict[str, Any]:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _memory_gib() -> float | None:
    names: Iterable[str] = getattr(os, "sysconf_names", ())
    if "SC_PHYS_PAGES" not in names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _plain(value: Any) -> Any:
    """The same content in JSON's own types; floats that are not finite become None."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value
