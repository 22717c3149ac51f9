"""The data sets by name: what reads them, where they are published, and which splits they have."""

from dataclasses import dataclass
from pathlib import Path

from slotmatch.settings import Split, choices

__all__ = [
    "DATASETS",
    "EMBEDDED",
    "NAMES",
    "SPLITS",
    "Dataset",
    "Report",
    "check_name",
    "not_here",
    "splits_of",
]

SPLITS = choices(Split)


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set without its files.

    Attributes:
        reader: The module of ``slotmatch.data`` that reads it.
        splits: Those with masks: not every real set has them for a ``test`` split.
        source: Where its files are published; None: it is made on this machine.
        stand_in: The embedded set to run where the files are not at hand.
    """

    reader: str
    splits: tuple[str, ...]
    source: str | None = None
    stand_in: str | None = None


def _movi(letter: str, stand_in: str, splits: tuple[str, ...]) -> Dataset:
    source = f"public bucket gs://kubric-public/tfds, folder movi_{letter}/128x128/1.0.0"
    return Dataset("movi", splits, source, stand_in)


_SCORED = SPLITS[:2]
DATASETS = {
    **{f"minimovi_{x}": Dataset("minimovi", SPLITS) for x in "acde"},
    "movi_a": _movi("a", "minimovi_a", _SCORED),
    "movi_b": _movi("b", "minimovi_a", _SCORED),
    **{f"movi_{x}": _movi(x, f"minimovi_{x}", SPLITS) for x in "cde"},
    "ytvis2021": Dataset("ytvis", _SCORED, "youtube-vos.org, after registration", "minimovi_e"),
    "davis2017": Dataset("davis", _SCORED, "davischallenge.org", "minimovi_e"),
    "davis2016": Dataset("davis", _SCORED, "davischallenge.org", "minimovi_e"),
    "ovis": Dataset("ytvis", _SCORED, "songbai.site/ovis, after registration", "minimovi_e"),
}
NAMES = tuple(DATASETS)
EMBEDDED = tuple(name for name, dataset in DATASETS.items() if dataset.source is None)
"""Data sets that are made on this machine."""


@dataclass(frozen=True)
class Report:
    """What of a real data set is on this machine.

    Attributes:
        name: The data set.
        folder: Where its files are looked for.
        present: One line for each thing that is there.
        missing: One line for each thing that is not, or is damaged.
        how: How to get what is missing.
        differs: One line for each thing that is there in another number than published.
    """

    name: str
    folder: Path
    present: tuple[str, ...]
    missing: tuple[str, ...]
    how: str
    differs: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name} in {self.folder}"]
        lines += [f"  there:   {line}" for line in self.present]
        lines += [f"  differs: {line}" for line in self.differs]
        lines += [f"  missing: {line}" for line in self.missing]
        return "\n".join([*lines, f"  how to get it: {self.how}"] if self.missing else lines)


def check_name(name: str) -> None:
    """Refuse, with a ValueError, a name that no data set has."""
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; choose from {', '.join(NAMES)}")


def splits_of(name: str) -> tuple[str, ...]:
    """The splits that a data set has."""
    return DATASETS[name].splits


def not_here(name: str, how: str) -> FileNotFoundError:
    """The error of a real data set without files: what to do, and what to run instead."""
    dataset = DATASETS[name]
    return FileNotFoundError(
        f"the files of {name} are not on this machine: {how} (source: {dataset.source}), or run "
        f"the embedded stand-in, -p dataset {dataset.stand_in}"
    )
