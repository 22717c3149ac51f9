"""From notebooks to the book: check parameters, execute once, record numbers, render.

``python -m slotmatch.reporting.report`` executes every notebook into a copy of the book, renders
that copy and prints the comparison table. Nothing is done twice: a notebook runs again only when
it, its parameters, the package, its weights or a library changed, and the book is rendered again
only when one of its pages did. The committed notebooks are never written to.
"""

import argparse
import ast
import difflib
import importlib.util
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import papermill
from pandas.io.formats.style import Styler
from papermill.exceptions import PapermillExecutionError

from slotmatch import paths
from slotmatch.reporting.results import comparison_table, read_results
from slotmatch.settings import AT_LEAST_0, Rule, Size, check, check_choice, choices

__all__ = [
    "Parameters",
    "TrainingParameters",
    "build_book",
    "check_parameters",
    "environments",
    "record",
    "reproduce",
    "run_notebook",
    "table",
    "times",
]

MAIN_JOB = "03_distill"
RESULTS_FILE = "results.json"
TEXT = Rule("a text", lambda value: isinstance(value, str))
WIDGET = "application/vnd.jupyter.widget-view+json"


@dataclass(frozen=True)
class Parameters:
    """The parameters every notebook takes, checked.

    ``steps`` 0 means the preset's own number. ``output`` is the folder that receives
    ``results.json`` and whatever else the run leaves behind.

    Raises:
        ValueError: a value is not among the choices or not of its kind.
    """

    dataset: str
    preset: str
    backbone: str
    seed: int
    steps: int
    output: str

    def __post_init__(self) -> None:
        """Refuse values that would only fail after minutes."""
        texts = ("dataset", "backbone", "output")
        check(self, [(TEXT, texts), (AT_LEAST_0, ("seed", "steps"))])
        check_choice("preset", self.preset, Size)

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any], *, notebook: str) -> "Parameters":
        """The parameters a notebook was started with, taken from its ``globals()``.

        Papermill accepts a misspelt parameter with no more than a warning, so the cell it injected
        is read here, and names that no notebook takes are refused. An empty ``output`` becomes
        ``runs/<notebook>.<dataset>.<preset>.seed<seed>`` under the working directory.

        Raises:
            ValueError: an injected name is unknown, or a value is refused by the class.
        """
        names = [field.name for field in fields(cls)]
        injected = (cell for cell in namespace.get("In", ()) if cell.startswith("# Parameters\n"))
        _refuse_unknown(
            (
                target.id
                for cell in injected
                for statement in ast.parse(cell).body
                if isinstance(statement, ast.Assign)
                for target in statement.targets
                if isinstance(target, ast.Name)
            ),
            names,
            notebook,
        )
        parameters = cls(**{name: namespace[name] for name in names})
        folder = parameters.output or (
            f"runs/{notebook}.{parameters.dataset}.{parameters.preset}.seed{parameters.seed}"
        )
        return cls(**{**asdict(parameters), "output": folder})

    @property
    def results(self) -> Path:
        """Where the run's result file goes."""
        return Path(self.output) / RESULTS_FILE


@dataclass(frozen=True)
class TrainingParameters(Parameters):
    """Those of a notebook that shows committed results unless ``train`` tells it to make them."""

    train: bool


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Compare names with the annotated parameters cell of ``notebook``.

    Raises:
        ValueError: a name is not a parameter of the notebook; the message lists the choices.
    """
    _refuse_unknown(parameters, list(papermill.inspect_notebook(str(notebook))), notebook.stem)


def run_notebook(source: Path, executed: Path, parameters: Mapping[str, Any]) -> bool:
    """Execute ``source`` into ``executed`` unless that is up to date; True if it ran.

    The working directory is the folder of ``executed``, so a relative ``output`` starts there. What
    papermill notes about paths and times is dropped: the same run gives the same file. So are
    widgets, all of them progress bars: a page would fetch scripts from elsewhere to draw them.
    If a cell fails, the notebook up to there stays beside ``executed`` as ``.failed.ipynb``.

    Raises:
        ValueError: a parameter is unknown.
        papermill.exceptions.PapermillExecutionError: a cell failed.
    """
    check_parameters(source, parameters)
    key = _notebook_key(source, parameters)
    results = executed.parent / str(parameters.get("output", "")) / RESULTS_FILE
    if executed.is_file() and results.is_file():
        done = nbformat.read(executed, as_version=4)
        if done.metadata.get("slotmatch", {}).get("key") == key:
            return False
    executed.parent.mkdir(parents=True, exist_ok=True)
    running = executed.with_suffix(".failed.ipynb")
    papermill.execute_notebook(
        str(source),
        str(running),
        parameters=dict(parameters),
        cwd=str(executed.parent),
        progress_bar=sys.stderr.isatty(),
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # it warns about sockets in every run
        stdout_file=sys.stdout if sys.stdout.isatty() else None,
    )
    notebook = nbformat.read(running, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.metadata["slotmatch"] = {"key": key}
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_widget(output)]
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "injected-parameters" in cell.metadata.get("tags", ()):
            cell.metadata["tags"].append("hide-input")
    with paths.atomic(executed) as temporary:
        nbformat.write(notebook, temporary)
    running.unlink()
    return True


def build_book(source: Path, output: Path) -> bool:
    """Render the book in ``source`` to ``output/_build/html``; True unless it was up to date.

    Nothing is executed, every warning counts as an error, and no network is needed.

    Raises:
        RuntimeError: the build warned or failed; the message holds what it printed.
    """
    stamp = output / "_build" / "book.key"
    key = _key(_files(source), [_versions()], base=source)
    site = output / "_build" / "html"
    if stamp.is_file() and stamp.read_text() == key and (site / "index.html").is_file():
        return False
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(source)]
    options = ["--path-output", str(output), "--all", "-n", "-W", "--keep-going"]
    stamp.unlink(missing_ok=True)
    shutil.rmtree(site, ignore_errors=True)
    built = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if built.returncode:
        raise RuntimeError(f"the book did not build:\n{built.stdout}\n{built.stderr}")
    with paths.atomic(stamp) as temporary:
        temporary.write_text(key)
    return True


def record(**values: Any) -> None:
    """Make values available to every page of the book under their names (``glue``).

    Numbers become plain Python ones, since a numpy scalar prints its type and leaves a hole in the
    page. Texts, figures and tables pass unchanged. Without the ``book`` extra there is no book to
    read the values, and nothing happens.

    Raises:
        ValueError: a number is not finite or an array was given.
    """
    if importlib.util.find_spec("myst_nb") is None:
        return
    from myst_nb import glue

    for name, value in values.items():
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError(f"{name} is an array of shape {value.shape}; record single numbers")
        if isinstance(value, np.ndarray | np.generic):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} cannot stand in a text")
        glue(name, value, display=False)


def table(frame: pd.DataFrame) -> Styler:
    """A table as the book shows it: spaced columns, readable in dark mode, the same every run."""
    digest = sha256(frame.to_csv().encode()).hexdigest()[:8]
    styler = frame.style.set_uuid(digest).format(precision=2)
    return styler.set_table_attributes('class="table dataframe"')


def times(runs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """How long each page's run took, by its result file: columns ``page``, ``preset``, ``time``."""
    return pd.DataFrame(
        {
            "page": [f"[](../notebooks/{name}.ipynb)" for name in runs],
            "preset": [run["config"]["parameters"]["preset"] for run in runs.values()],
            "time": [_duration(run["wall_seconds"]) for run in runs.values()],
        }
    )


def environments(runs: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Machine and versions of runs by name: columns ``what``, ``value``, ``pages``.

    A row for each value that any run has of a thing; ``pages`` says ``all`` or which runs. What a
    run has not, such as a GPU, makes no row.
    """
    seen: dict[tuple[str, str], list[str]] = {}
    for name, run in runs.items():
        found = run["environment"]
        source = found["source"]
        machine = {
            "processor": found["hardware"]["cpu"],
            "cores": found["hardware"]["cores"],
            "threads": found["hardware"]["threads"],
            "memory, GiB": found["hardware"]["memory_gib"],
            "GPU": found["hardware"]["gpu"],
            "system": found["system"],
            "commit": source
            and source["revision"][:10] + (" and uncommitted changes" if source["changed"] else ""),
            "Python": found["python"],
        }
        for thing, value in (machine | found["packages"]).items():
            if value is not None:
                seen.setdefault((thing, str(value)), []).append(name)
    things = list(dict.fromkeys(thing for thing, _ in seen))
    rows = [
        (thing, value, "all" if len(names) == len(runs) else ", ".join(names))
        for (thing, value), names in sorted(seen.items(), key=lambda item: things.index(item[0][0]))
    ]
    return pd.DataFrame(rows, columns=["what", "value", "pages"])


def reproduce(*, preset: str = "mini", output: Path = paths.REPOSITORY) -> Path:
    """Execute the notebooks, render the book, print the comparison table; the path to open.

    ``output`` receives a folder ``_build`` with ``src`` (the book with executed notebooks),
    ``runs`` (their results) and ``html`` (the pages).
    """
    source = output / "_build" / "src"
    _stage_pages(source)
    notebooks = sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb"))
    for notebook in notebooks:
        started = time.monotonic()
        _say(f"{notebook.stem}: checking")
        executed = source / "notebooks" / notebook.name
        parameters = {"preset": preset, "output": f"../../runs/{notebook.stem}"}
        _forget_other_run(
            output / "_build" / "runs" / notebook.stem, _notebook_key(notebook, parameters)
        )
        ran = run_notebook(notebook, executed, parameters)
        _say(f"{notebook.stem}: {_outcome(ran, started)}")
        _stage_static(output / "_build" / "runs" / notebook.stem, source)
    runs = {path.stem: output / "_build" / "runs" / path.stem / RESULTS_FILE for path in notebooks}
    _stage_made_with({name: read_results(path) for name, path in runs.items()}, source)
    started = time.monotonic()
    built = build_book(source, output)
    _say(f"book: {_outcome(built, started)}")
    site = output / "_build" / "html" / "index.html"
    _say(f"\n{comparison_table(read_results(runs[MAIN_JOB])).to_string()}\n\nOpen {site}")
    return site


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m slotmatch.reporting.report", description=__doc__
    )
    parser.add_argument("--preset", choices=choices(Size), default="mini", help="size of every run")
    parser.add_argument(
        "--output", type=Path, default=paths.REPOSITORY, help="folder that receives _build"
    )
    chosen = parser.parse_args(arguments)
    try:
        reproduce(preset=chosen.preset, output=chosen.output.resolve())
    except (PapermillExecutionError, RuntimeError) as error:
        sys.exit(str(error))


def _stage_pages(source: Path) -> None:
    """Copy configuration and pages to ``source``; notebooks get there by being executed."""
    shutil.rmtree(source / "book", ignore_errors=True)
    shutil.copytree(paths.REPOSITORY / "book", source / "book")
    shutil.copytree(paths.REPOSITORY / "_static", source / "_static", dirs_exist_ok=True)
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md", "CITATION.cff"):
        shutil.copyfile(paths.REPOSITORY / name, source / name)
    kept = {notebook.name for notebook in paths.NOTEBOOKS.glob("*.ipynb")}
    for stale in source.glob("notebooks/*.ipynb"):
        if stale.name not in kept:
            stale.unlink()


def _stage_static(run: Path, source: Path) -> None:
    """Copy what a run left for its page to load, in a folder ``static``, to where Sphinx looks."""
    if (run / "static").is_dir():
        shutil.copytree(run / "static", source / "_static", dirs_exist_ok=True)


def _stage_made_with(runs: Mapping[str, Mapping[str, Any]], source: Path) -> None:
    """Write the tables of the page on what the book was made with."""
    folder = source / "book" / "made_with"
    folder.mkdir(exist_ok=True)
    with paths.atomic(folder / "times.csv") as temporary:
        times(runs).to_csv(temporary, index=False)
    with paths.atomic(folder / "environment.csv") as temporary:
        environments(runs).to_csv(temporary, index=False)


def _refuse_unknown(names: Iterable[str], choices: list[str], notebook: str) -> None:
    for name in names:
        if name not in choices:
            close = difflib.get_close_matches(name, choices, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{notebook} has no parameter {name!r}, only {choices}{hint}")


def _files(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if "__pycache__" not in path.parts)


def _notebook_key(source: Path, parameters: Mapping[str, Any]) -> str:
    """What a notebook's outcome depends on: itself, its parameters, this package, committed
    results, all versions."""
    package = _key(_files(paths.PACKAGE), _versions(), base=paths.PACKAGE)
    committed = _key(_files(paths.RESULTS), [], base=paths.RESULTS)
    return _key([source], [sorted(parameters.items()), package, committed], base=source.parent)


def _forget_other_run(folder: Path, key: str) -> None:
    """Empty a run's folder unless it holds the run of this key, which goes on where it stopped."""
    stamp = folder / "run.key"
    if not (stamp.is_file() and stamp.read_text() == key):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with paths.atomic(stamp) as temporary:
            temporary.write_text(key)


def _versions() -> list[tuple[str, str]]:
    installed = metadata.distributions()
    return sorted({(found.metadata["Name"], found.version) for found in installed})


def _key(files: Iterable[Path], rest: Any, *, base: Path) -> str:
    """A digest of the files' paths under ``base``, their content, and the text of ``rest``."""
    digest = sha256(repr(rest).encode())
    for path in files:
        digest.update(f"\n{path.relative_to(base)}\n".encode())
        digest.update(sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _is_widget(output: Mapping[str, Any]) -> bool:
    return WIDGET in output.get("data", {})


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 99.5 else f"{seconds / 60:.0f} min"


def _outcome(ran: bool, started: float) -> str:
    return f"done in {time.monotonic() - started:.0f} s" if ran else "up to date"


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
