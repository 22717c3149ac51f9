"""Where things are, so that no other file spells a path; whole files and their checksums."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

__all__ = [
    "BUILD",
    "NOTEBOOKS",
    "PACKAGE",
    "REPOSITORY",
    "RESULTS",
    "WEIGHTS",
    "atomic",
    "cache_dir",
    "check_output",
    "checksum",
    "data_dir",
    "usual_mode",
]

PACKAGE = Path(__file__).resolve().parent
"""The installed package."""
REPOSITORY = PACKAGE.parent
"""The checkout; meaningful for an editable install, which is what ``make`` sets up."""
WEIGHTS = PACKAGE / "weights"
"""Trained models that come with the package."""
NOTEBOOKS = REPOSITORY / "notebooks"
RESULTS = REPOSITORY / "book" / "results"
"""Committed result files: the only source of the book's numbers besides a fresh run."""
BUILD = REPOSITORY / "_build"
"""What ``make`` produces: executed notebooks, their results, the rendered book."""


def cache_dir() -> Path:
    """The folder of everything that can be computed again (environment ``SLOTMATCH_CACHE``)."""
    return _folder("SLOTMATCH_CACHE") or Path.home() / ".cache" / "slotmatch"


def data_dir() -> Path:
    """The folder of data sets, embedded and downloaded (environment ``SLOTMATCH_DATA``)."""
    return _folder("SLOTMATCH_DATA") or cache_dir() / "data"


def _folder(variable: str) -> Path | None:
    """What a variable of the environment says; ``~`` is the home folder there, too."""
    told = os.environ.get(variable)
    return Path(told).expanduser() if told else None


def usual_mode(folder: Path) -> int:
    """The rights that a new file in a folder gets, for writers that give fewer."""
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as inside:
        probe = Path(inside) / "probe"
        probe.touch()
        return probe.stat().st_mode & 0o777


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse, before the work, a file that could not be written after it. Nothing is made.

    Raises:
        IsADirectoryError: a folder is there.
        OSError: its folder cannot be made or written to.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the path of a file, in it or elsewhere")
    usual_mode(next(folder for folder in path.parents if folder.exists()))


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` on success and vanishes on failure.

    A reader never sees half a file, whatever stops the writer. The temporary one has the same
    name, in a hidden folder beside ``path``: writers that choose a format by suffix work, and no
    ``glob`` for finished files finds it. Missing parent folders are made, and vanish with it.

    Raises:
        FileNotFoundError: nothing was written to the temporary path.
    """
    path = Path(path)
    made = list(takewhile(lambda parent: not parent.exists(), path.parents))
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # one that somebody else has put something into stays
            for parent in made:
                parent.rmdir()
        raise


def checksum(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return sha256(Path(path).read_bytes()).hexdigest()
