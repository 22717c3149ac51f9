"""The real book, built once a test session with the smallest runs of its notebooks."""

import functools
import io
import tempfile
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from slotmatch.reporting import report

_FOLDER = tempfile.TemporaryDirectory(prefix="slotmatch-book-")


@dataclass(frozen=True)
class SmokeBook:
    """What ``make reproduce`` leaves behind and prints, with the smoke preset."""

    output: Path
    page: Path
    printed: str

    @property
    def html(self) -> Path:
        return self.output / "_build" / "html"

    @property
    def runs(self) -> Path:
        return self.output / "_build" / "runs"

    @property
    def notebooks(self) -> Path:
        """The executed ones."""
        return self.output / "_build" / "src" / "notebooks"


def reproduce() -> SmokeBook:
    """Runs what is not up to date."""
    output = Path(_FOLDER.name)
    with redirect_stdout(io.StringIO()) as printed:
        page = report.reproduce(preset="smoke", output=output)
    return SmokeBook(output, page, printed.getvalue())


@functools.cache
def smoke_book() -> SmokeBook:
    """The first run of the session, shared by all tests that look at its results."""
    return reproduce()
