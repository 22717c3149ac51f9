"""Data sets by name: every one gives the same ``Clip`` of video, integer labels and id."""

from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import Any

import numpy as np

from slotmatch.data.catalogue import (
    DATASETS,
    EMBEDDED,
    NAMES,
    SPLITS,
    Report,
    check_name,
    splits_of,
)
from slotmatch.data.clips import Clip, HasVideo
from slotmatch.extras import require

__all__ = [
    "EMBEDDED",
    "NAMES",
    "SPLITS",
    "Clip",
    "HasVideo",
    "Report",
    "check",
    "open",
    "splits_of",
    "version",
]


NEEDS = {
    "minimovi": ("joblib", "pybullet"),
    "movi": ("google_crc32c", "google.protobuf"),
    "ytvis": ("pycocotools", "pydantic"),
    "davis": (),
}
"""What each reader imports beyond the core."""


def open(
    name: str,
    split: str,
    *,
    n_videos: int | None = None,
    root: str | PathLike[str] | None = None,
    progress: bool | None = None,
) -> Sequence[Clip]:
    """The clips of one split of the data set called ``name``, read lazily.

    Videos of the embedded sets that are not on disk yet are rendered first, by one process per
    core.

    Args:
        name: One of ``NAMES``.
        split: One of ``splits_of(name)``.
        n_videos: The first so many videos; None gives the split's default size.
        root: Folder that holds the data sets; None gives ``slotmatch.paths.data_dir()``.
        progress: Show a progress bar; None: if the output is a terminal.

    Raises:
        ValueError: a name, split or number of videos that does not exist.
        FileNotFoundError: a real data set whose files are not on this machine.
    """
    check_name(name)
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; choose from {', '.join(SPLITS)}")
    if n_videos is not None and (
        isinstance(n_videos, bool) or not isinstance(n_videos, int | np.integer) or n_videos < 1
    ):
        raise ValueError(f"n_videos is {n_videos!r}; give a whole number of 1 or more, or None")
    return _reader(name).open_split(name, split, n_videos=n_videos, root=root, progress=progress)


def version(name: str) -> int | str | None:
    """The version of a data set's files; None where the name says it all."""
    return getattr(_reader(name), "VERSION", None)


def check(name: str, root: str | PathLike[str] | None = None) -> Report:
    """What of the real data set called ``name`` is there, what is missing and how to get it.

    Raises:
        ValueError: no real data set is called so.
    """
    real = [known for known in NAMES if known not in EMBEDDED]
    if name not in real:
        raise ValueError(f"no real data set is called {name!r}; choose from {', '.join(real)}")
    return _reader(name).check(name, root)


def _reader(name: str) -> Any:
    """The module that reads a data set, imported only now: each needs packages of its own."""
    reader = DATASETS[name].reader
    require("data", *NEEDS[reader])
    return import_module(f"slotmatch.data.{reader}")
