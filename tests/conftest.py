import io
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, sync_playwright

from slotmatch.paths import NOTEBOOKS
from slotmatch.reporting import report
from slotmatch.reporting.results import read_results


@pytest.fixture(scope="session")
def oracles() -> Iterator[Mapping[str, np.ndarray]]:
    """Expected values by key; tests/oracles/README.md says where they come from."""
    with np.load(Path(__file__).parent / "oracles" / "oracles.npz") as arrays:
        yield arrays


@dataclass(frozen=True)
class Book:
    """What ``make reproduce`` leaves behind and prints, with the smallest runs."""

    output: Path

    def reproduce(self) -> str:
        """Runs what is not up to date; what is printed."""
        with redirect_stdout(io.StringIO()) as printed:
            report.reproduce(preset="smoke", output=self.output)
        return printed.getvalue()

    @property
    def html(self) -> Path:
        return self.output / "_build" / "html"

    def results(self, notebook: str) -> dict[str, Any]:
        return read_results(self.output / "_build" / "runs" / notebook / "results.json")


@pytest.fixture(scope="session")
def printed_book(tmp_path_factory: pytest.TempPathFactory) -> tuple[Book, str]:
    book = Book(tmp_path_factory.mktemp("book"))
    return book, book.reproduce()


@pytest.fixture(scope="session")
def book(printed_book: tuple[Book, str]) -> Book:
    """The real book, built once a session from the smallest runs of its notebooks."""
    return printed_book[0]


CHROMIUM_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Quiet(SimpleHTTPRequestHandler):
    """Sends the types that browsers insist on, whatever this machine's tables say."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="session")
def site(book: Book, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the book is served, at the path that it has when published."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "slotmatch").symlink_to(book.html)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/slotmatch/"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail(
            "no chromium on the PATH: `make chromium` installs it, "
            "or apt-get install --no-install-recommends chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@dataclass(frozen=True)
class Heard:
    """A page, what it asked of other hosts (in vain), and the errors in its console."""

    page: Page
    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, here: str) -> Iterator[Heard]:
    """A page that reaches nothing but addresses that begin with ``here``."""
    heard = Heard(browser.new_page())
    page = heard.page
    page.set_default_timeout(120_000)  # a busy machine is no fault of the page

    def refuse(route: Route) -> None:
        heard.foreign.append(route.request.url)
        route.abort()

    page.route(lambda address: not address.startswith((here, "blob:", "data:")), refuse)
    page.on("pageerror", lambda error: heard.errors.append(str(error)))
    page.on("console", lambda line: line.type == "error" and heard.errors.append(line.text))
    yield heard
    page.close()


@dataclass(frozen=True)
class Run:
    """A notebook run by papermill from a shell, in a folder of its own."""

    folder: Path
    code: int
    out: str
    err: str

    def results(self) -> dict[str, Any]:
        assert self.code == 0, self.err[-2000:]
        (path,) = self.folder.glob("runs/*/results.json")
        return read_results(path)


@pytest.fixture(scope="session")
def run_notebook(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Runs a notebook by its name with ``name=value``, once a session for each such call.

    ``data`` is the folder of data sets, where it is to be another than usual.
    """

    @cache
    def run(notebook: str, *parameters: str, data: Path | None = None) -> Run:
        folder = tmp_path_factory.mktemp(notebook)
        given = [text for each in parameters for text in ("-p", *each.split("=", 1))]
        done = subprocess.run(
            [sys.executable, "-m", "papermill", str(NOTEBOOKS / f"{notebook}.ipynb"), "-", *given],
            cwd=folder,
            env=os.environ | ({"SLOTMATCH_DATA": str(data)} if data else {}),
            capture_output=True,
            text=True,
            timeout=600,
        )
        return Run(folder, done.returncode, done.stdout, done.stderr)

    return run
