"""Data sets by name: every one gives the same ``Clip`` of video, integer labels and id."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

import numpy as np

__all__ = [
    "EMBEDDED",
    "NAMES",
    "SPLITS",
    "Clip",
    "Report",
    "VideoDataset",
    "check",
    "not_here",
    "open",
    "splits_of",
    "version",
]

SPLITS = ("train", "validation", "test")
EMBEDDED = ("minimovi_a", "minimovi_c", "minimovi_d", "minimovi_e")
"""Data sets that are made on this machine."""
_KUBRIC = "public bucket gs://kubric-public/tfds, folder {name}/128x128/1.0.0"
_REAL = {  # name -> (module that reads it, where its files are published, embedded stand-in)
    **{f"movi_{x}": ("movi", _KUBRIC.format(name=f"movi_{x}"), f"minimovi_{x}") for x in "acde"},
    "movi_b": ("movi", _KUBRIC.format(name="movi_b"), "minimovi_a"),
    "ytvis2021": ("ytvis", "youtube-vos.org, after registration", "minimovi_e"),
    "davis2017": ("davis", "davischallenge.org", "minimovi_e"),
    "davis2016": ("davis", "davischallenge.org", "minimovi_e"),
    "ovis": ("ytvis", "songbai.site/ovis, after registration", "minimovi_e"),
}
NAMES = (*EMBEDDED, *_REAL)


@dataclass(frozen=True, eq=False)
class Clip:
    """One video with its true instances.

    Attributes:
        video: uint8 (T, H, W, 3), RGB.
        labels: int32 (T, H, W); 0 is background, every other number one object of the whole video.
        id: Unique in the data set, such as ``minimovi_a/train/00012``.
    """

    video: np.ndarray
    labels: np.ndarray
    id: str


@dataclass(frozen=True)
class Report:
    """What of a real data set is on this machine.

    Attributes:
        name: The data set.
        folder: Where its files are looked for.
        present: One line for each thing that is there.
        missing: One line for each thing that is not, or is damaged.
        how: How to get what is missing.
    """

    name: str
    folder: Path
    present: tuple[str, ...]
    missing: tuple[str, ...]
    how: str

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.folder}"]
        lines += [f"  there:   {line}" for line in self.present]
        lines += [f"  missing: {line}" for line in self.missing]
        return "\n".join([*lines, f"  how to get it: {self.how}"] if self.missing else lines)


class VideoDataset(Protocol):
    """What ``open`` returns: a sequence of clips that are read from disk when asked for."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Names of the clips, in order."""
        ...

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Clip: ...
    def __iter__(self) -> Iterator[Clip]: ...


def open(
    name: str,
    split: str,
    *,
    n_videos: int | None = None,
    root: str | PathLike[str] | None = None,
    progress: bool = False,
) -> Sequence[Clip]:
    """The clips of one split of the data set called ``name``, read lazily.

    Videos of the embedded sets that are not on disk yet are rendered first, by one process per
    core, so a script that opens one needs the usual ``if __name__ == "__main__":`` guard.

    Args:
        name: One of ``NAMES``.
        split: One of ``splits_of(name)``.
        n_videos: The first so many videos; None gives the split's default size.
        root: Folder that holds the data sets; None gives ``slotmatch.paths.data_dir()``.
        progress: Show a progress bar even when the output is not a terminal.

    Raises:
        ValueError: a name, split or number of videos that does not exist.
        FileNotFoundError: a real data set whose files are not on this machine.
    """
    if name not in NAMES:
        raise ValueError(f"no data set is called {name!r}; choose from {', '.join(NAMES)}")
    if split not in SPLITS:
        raise ValueError(f"no split is called {split!r}; choose from {', '.join(SPLITS)}")
    if n_videos is not None and (
        isinstance(n_videos, bool) or not isinstance(n_videos, int | np.integer) or n_videos < 1
    ):
        raise ValueError(f"n_videos is {n_videos!r}; give a whole number of 1 or more, or None")
    if name in _REAL:
        reader = _reader(name)
        return reader.open_split(name, split, n_videos=n_videos, root=root, progress=progress)
    from slotmatch.data.minimovi import MiniMovi

    return MiniMovi(name, split, n_videos=n_videos, root=root, progress=progress)


def splits_of(name: str) -> tuple[str, ...]:
    """The splits that a data set has: not every real one has masks for a ``test`` split."""
    return SPLITS if name in (*EMBEDDED, "movi_c", "movi_d", "movi_e") else SPLITS[:2]


def version(name: str) -> int | str | None:
    """The version of a data set's files; None where the name says it all."""
    if name in EMBEDDED:
        return import_module("slotmatch.data.minimovi").VERSION
    return _reader(name).VERSION if name.startswith("movi_") else None


def check(name: str, root: str | PathLike[str] | None = None) -> Report:
    """What of the real data set called ``name`` is there, what is missing and how to get it.

    Raises:
        ValueError: no real data set is called so.
    """
    if name not in _REAL:
        raise ValueError(f"no real data set is called {name!r}; choose from {', '.join(_REAL)}")
    return _reader(name).check(name, root)


def not_here(name: str, how: str) -> FileNotFoundError:
    """The error of a real data set without files: what to do, and what to run instead."""
    _, source, stand_in = _REAL[name]
    return FileNotFoundError(
        f"the files of {name} are not on this machine: {how} (source: {source}), or run the "
        f"embedded stand-in, -p dataset {stand_in}"
    )


def _reader(name: str) -> Any:
    """The module that reads a real data set, imported only now: some take a while."""
    return import_module(f"slotmatch.data.{_REAL[name][0]}")
