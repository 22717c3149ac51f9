import shutil
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import papermill
import pytest
from papermill.exceptions import PapermillExecutionError

from slotmatch.reporting import report
from slotmatch.reporting.report import Parameters

VALID: dict[str, Any] = {
    "dataset": "minimovi_a",
    "preset": "smoke",
    "backbone": "embedded",
    "seed": 0,
    "steps": 0,
    "output": "",
}
PARAMETERS_CELL = """\
dataset: str = "minimovi_a"  # data set
preset: str = "smoke"  # size of the run
backbone: str = "embedded"  # feature extractor
seed: int = 0  # of everything random
steps: int = 0  # training steps, 0 for the preset's own
output: str = ""  # folder of results.json
"""
WORK_CELL = """\
from pathlib import Path
from slotmatch.reporting import report
parameters = report.Parameters.from_notebook(globals(), notebook="tiny")
if parameters.seed == 13:
    raise RuntimeError("unlucky")
folder = Path(parameters.output)
folder.mkdir(parents=True, exist_ok=True)
with open(folder / "runs.log", "a") as log:
    print(parameters, file=log)
(folder / "results.json").write_text("{}")
report.record(answer=42)
"""


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook whose first cell is tagged as its parameters."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    notebook.cells = [nbformat.v4.new_markdown_cell("# Tiny")]
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook.cells[1].metadata["tags"] = ["parameters"]
    for number, cell in enumerate(notebook.cells):
        cell["id"] = str(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "source" / "tiny.ipynb", PARAMETERS_CELL, WORK_CELL)


class TestParameters:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"preset": "big"}, r"preset must be one of \('smoke', 'mini', 'paper'\), got 'big'"),
            ({"preset": 1}, "preset must be one of"),
            ({"seed": "1"}, "seed must be a whole number of 0 or more, got '1'"),
            ({"seed": True}, "seed must be a whole number of 0 or more, got True"),
            ({"steps": 1.5}, "steps must be a whole number of 0 or more, got 1.5"),
            ({"steps": -1}, "steps must be a whole number of 0 or more, got -1"),
            ({"output": 3}, "output must be a text, got 3"),
        ],
    )
    def test_wrong_values_name_value_and_choice(self, wrong: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Parameters(**{**VALID, **wrong})

    def test_results_go_to_the_output_folder(self) -> None:
        parameters = Parameters(**{**VALID, "output": "runs/x"})
        assert parameters.results == Path("runs/x/results.json")

    def test_an_empty_output_names_the_run(self) -> None:
        namespace = {**VALID, "steps": 5, "unrelated": object()}
        parameters = Parameters.from_notebook(namespace, notebook="03_distill")
        assert parameters.output == "runs/03_distill.minimovi_a.smoke.seed0"
        assert parameters.steps == 5
        given = Parameters.from_notebook({**namespace, "output": "mine"}, notebook="03_distill")
        assert given.output == "mine"

    def test_a_misspelt_injected_name_is_refused(self) -> None:
        cells = ["", "dataset = 'minimovi_a'", "# Parameters\ndataste = 'minimovi_c'\nseed = 1\n"]
        with pytest.raises(ValueError, match="03_distill has no parameter 'dataste'") as error:
            Parameters.from_notebook({**VALID, "In": cells}, notebook="03_distill")
        assert "did you mean 'dataset'?" in str(error.value)

    def test_other_cells_may_assign_what_they_like(self) -> None:
        cells = ["", "dataste = 'minimovi_c'", "# Parameters\nseed = 1\n"]
        parameters = Parameters.from_notebook({**VALID, "In": cells}, notebook="03_distill")
        assert parameters.dataset == "minimovi_a"


class TestCheckParameters:
    def test_names_of_the_parameters_cell_pass(self, tiny: Path) -> None:
        report.check_parameters(tiny, VALID)
        report.check_parameters(tiny, {})

    def test_a_misspelt_name_is_refused_with_choices(self, tiny: Path) -> None:
        with pytest.raises(ValueError, match=r"tiny has no parameter 'sed'.*did you mean 'seed'"):
            report.check_parameters(tiny, {"sed": 1})
        with pytest.raises(ValueError, match=r"no parameter 'xyz', only \['dataset', .*\]$"):
            report.check_parameters(tiny, {"xyz": 1})


class TestRecord:
    @pytest.fixture
    def glued(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        values: dict[str, Any] = {}
        monkeypatch.setattr(
            "myst_nb.glue", lambda name, value, display: values.update({name: value})
        )
        return values

    def test_numpy_numbers_become_plain(self, glued: dict[str, Any]) -> None:
        report.record(a=np.float32(0.5), b=np.int64(3), c=np.array(2.0), d="text", e=True)
        assert glued == {"a": 0.5, "b": 3, "c": 2.0, "d": "text", "e": True}
        assert [type(value) for value in glued.values()] == [float, int, float, str, bool]

    @pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), np.zeros(3)])
    def test_what_cannot_stand_in_a_text_is_refused(
        self, glued: dict[str, Any], value: object
    ) -> None:
        with pytest.raises(ValueError, match="score"):
            report.record(score=value)
        assert glued == {}


def runs(executed: Path) -> int:
    return len((executed.parent / "out" / "runs.log").read_text().splitlines())


@pytest.mark.slow
class TestRunNotebook:
    def test_it_runs_once_and_again_only_for_a_reason(
        self, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        executed = tmp_path / "staged" / "tiny.ipynb"
        parameters = {"output": "out", "seed": 1}
        before = tiny.read_bytes()
        assert report.run_notebook(tiny, executed, parameters)
        assert not report.run_notebook(tiny, executed, parameters)
        assert runs(executed) == 1

        assert report.run_notebook(tiny, executed, {**parameters, "seed": 2})
        assert runs(executed) == 2

        (executed.parent / "out" / "results.json").unlink()
        assert report.run_notebook(tiny, executed, {**parameters, "seed": 2})
        assert runs(executed) == 3

        package = tmp_path / "package"
        package.mkdir()
        (package / "part.py").write_text("changed = True\n")
        monkeypatch.setattr(report.paths, "PACKAGE", package)
        assert report.run_notebook(tiny, executed, {**parameters, "seed": 2})
        assert not report.run_notebook(tiny, executed, {**parameters, "seed": 2})

        committed = tmp_path / "committed"
        committed.mkdir()
        monkeypatch.setattr(report.paths, "RESULTS", committed)
        report.run_notebook(tiny, executed, parameters)
        (committed / "tried.json").write_text("{}")
        assert report.run_notebook(tiny, executed, parameters)
        assert not report.run_notebook(tiny, executed, parameters)
        assert tiny.read_bytes() == before

    def test_the_executed_copy_is_ready_for_the_book(self, tiny: Path, tmp_path: Path) -> None:
        executed = tmp_path / "staged" / "tiny.ipynb"
        report.run_notebook(tiny, executed, {"output": "out", "steps": 7})
        notebook = nbformat.read(executed, as_version=4)
        _, _, injected, work = notebook.cells
        assert injected.metadata["tags"] == ["injected-parameters", "hide-input"]
        assert injected.source == '# Parameters\noutput = "out"\nsteps = 7\n'
        (glued,) = work.outputs
        assert glued.data["application/papermill.record/text/plain"] == "42"
        assert "papermill" not in executed.read_text().replace("application/papermill", "")
        assert str(tmp_path) not in executed.read_text()
        assert [path.name for path in executed.parent.iterdir() if path.suffix == ".ipynb"] == [
            "tiny.ipynb"
        ]

    def test_a_failing_cell_leaves_the_evidence(self, tiny: Path, tmp_path: Path) -> None:
        executed = tmp_path / "staged" / "tiny.ipynb"
        with pytest.raises(PapermillExecutionError, match="unlucky"):
            report.run_notebook(tiny, executed, {"output": "out", "seed": 13})
        assert not executed.exists()
        failed = nbformat.read(executed.with_name("tiny.failed.ipynb"), as_version=4)
        outputs = [output for cell in failed.cells[-2:] for output in cell.get("outputs", ())]
        assert any(output.get("evalue") == "unlucky" for output in outputs)

    def test_papermill_alone_is_refused_a_misspelt_name(self, tiny: Path, tmp_path: Path) -> None:
        with pytest.raises(PapermillExecutionError, match="did you mean 'dataset'"):
            papermill.execute_notebook(
                str(tiny), str(tmp_path / "out.ipynb"), {"dataste": "x"}, progress_bar=False
            )


CONFIG = """\
title: tiny
only_build_toc_files: true
execute: {execute_notebooks: "off"}
"""


@pytest.fixture
def mini_book(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "_config.yml").write_text(CONFIG)
    (source / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (source / "intro.md").write_text("# Intro\n\nA first sentence.\n")
    return source


@pytest.mark.slow
class TestBuildBook:
    def test_it_renders_once_and_again_when_a_page_changes(
        self, mini_book: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "output"
        assert report.build_book(mini_book, output)
        page = output / "_build" / "html" / "intro.html"
        assert "A first sentence." in page.read_text()
        assert (page.parent / "index.html").is_file()
        assert not report.build_book(mini_book, output)

        (mini_book / "intro.md").write_text("# Intro\n\nAnother sentence.\n")
        assert report.build_book(mini_book, output)
        assert "Another sentence." in page.read_text()

        shutil.rmtree(page.parent)
        assert report.build_book(mini_book, output)
        assert page.is_file()

    @pytest.mark.parametrize(
        ("mistake", "said"),
        [("[link](nowhere.md)", "nowhere.md"), ("{glue:text}`missing`", "missing")],
        ids=["dead link", "missing number"],
    )
    def test_a_warning_fails_and_stays_failed(
        self, mini_book: Path, tmp_path: Path, mistake: str, said: str
    ) -> None:
        (mini_book / "intro.md").write_text(f"# Intro\n\n{mistake}\n")
        for _ in range(2):
            with pytest.raises(RuntimeError, match=said):
                report.build_book(mini_book, tmp_path / "output")


def run_of(seconds: float, *, threads: int = 1, changed: bool = False) -> dict[str, Any]:
    """The parts of a result file that the page on what the book was made with reads."""
    hardware = {"cpu": "A", "cores": 2, "threads": threads, "memory_gib": 8.0, "gpu": None}
    source = {"revision": "0123456789abcdef", "changed": changed}
    versions = {"python": "3.11.7", "packages": {"torch": "2.6.0", "pybullet": None}}
    return {
        "config": {"parameters": {"preset": "mini"}},
        "wall_seconds": seconds,
        "environment": {"system": "Linux", "hardware": hardware, "source": source, **versions},
    }


def test_the_time_of_each_page_has_the_unit_that_suits_it() -> None:
    table = report.times({"01_data": run_of(4.4), "03_distill": run_of(2700.0)})
    assert table.to_dict("list") == {
        "page": ["[](../notebooks/01_data.ipynb)", "[](../notebooks/03_distill.ipynb)"],
        "preset": ["mini", "mini"],
        "time": ["4 s", "45 min"],
    }


def test_what_runs_were_made_with_is_said_once_where_they_agree() -> None:
    runs = {"01_data": run_of(1.0), "03_distill": run_of(1.0, threads=2, changed=True)}
    assert report.environments(runs).to_numpy().tolist() == [
        ["processor", "A", "all"],
        ["cores", "2", "all"],
        ["threads", "1", "01_data"],
        ["threads", "2", "03_distill"],
        ["memory, GiB", "8.0", "all"],
        ["system", "Linux", "all"],
        ["commit", "0123456789", "01_data"],
        ["commit", "0123456789 and uncommitted changes", "03_distill"],
        ["Python", "3.11.7", "all"],
        ["torch", "2.6.0", "all"],
    ]


def test_outside_a_checkout_there_is_no_commit_to_name() -> None:
    run = run_of(1.0)
    run["environment"]["source"] = None
    assert "commit" not in set(report.environments({"01_data": run})["what"])


def test_the_command_line_refuses_an_unknown_preset(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        report.main(["--preset", "huge"])
    assert "smoke" in capsys.readouterr().err


def test_a_run_goes_on_in_its_folder_and_another_starts_afresh(tmp_path: Path) -> None:
    folder = tmp_path / "03_distill"
    report._forget_other_run(folder, "first")
    (folder / "checkpoint.pt").write_bytes(b"of the first run")
    report._forget_other_run(folder, "first")
    assert (folder / "checkpoint.pt").is_file()
    report._forget_other_run(folder, "second")
    assert not (folder / "checkpoint.pt").exists()
    assert folder.is_dir()
