"""The committed notebooks as a user runs them: through papermill, from a shell."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from smoke_book import smoke_book

from slotmatch.paths import NOTEBOOKS
from slotmatch.reporting.report import Parameters
from slotmatch.reporting.results import read_results

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def papermill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "papermill", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def test_there_are_five() -> None:
    assert NAMES == ["01_data", "02_teacher", "03_distill", "05_efficiency", "08_real_video"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_help_explains_every_parameter(name: str, tmp_path: Path) -> None:
    told = papermill("--help-notebook", str(NOTEBOOKS / f"{name}.ipynb"), cwd=tmp_path).stdout
    for parameter, field in Parameters.__dataclass_fields__.items():
        kind = getattr(field.type, "__name__", field.type)
        found = re.search(rf"  {parameter}: {kind} \(default .*?\)\s+(\S.*)", told)
        assert found, f"{parameter} has no explanation in:\n{told}"
        assert len(found[1]) > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parameter", "value", "complaint"),
    [
        ("dataset", "movi_d", "-p dataset minimovi_d"),
        ("dataset", "movid", "no data set is called 'movid'"),
        ("datset", "minimovi_a", "did you mean 'dataset'"),
        ("preset", "tiny", "choose from ['smoke', 'mini', 'paper']"),
    ],
)
def test_what_does_not_exist_is_refused_in_the_first_cell(
    parameter: str, value: str, complaint: str, tmp_path: Path
) -> None:
    notebook = str(NOTEBOOKS / "03_distill.ipynb")
    run = papermill(notebook, "out.ipynb", "-p", parameter, value, cwd=tmp_path)
    assert run.returncode == 1
    assert complaint in run.stderr
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    failed = [
        cell
        for cell in executed.cells
        if "papermill" in cell.metadata and cell.metadata["papermill"].get("exception")
    ]
    assert len(failed) == 1
    assert failed[0].metadata["papermill"]["duration"] < 30


@pytest.mark.slow
def test_the_short_form_leaves_results_behind(tmp_path: Path) -> None:
    smoke_book()  # its videos and features are in the cache now
    parameters = ["-p", "preset", "smoke", "-p", "steps", "3"]
    run = papermill(str(NOTEBOOKS / "03_distill.ipynb"), "-", *parameters, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-2000:]
    assert nbformat.reads(run.stdout, as_version=4).cells
    results = read_results(tmp_path / "runs" / "03_distill.minimovi_a.smoke.seed0" / "results.json")
    assert list(results["models"]) == ["teacher", "student", "undistilled", "scratch"]
    assert results["config"]["training"]["student"]["steps"] == 3


@pytest.mark.slow
def test_each_run_says_what_it_was() -> None:
    runs = smoke_book().runs
    for name in NAMES:
        results = json.loads((runs / name / "results.json").read_text())
        real = name == "08_real_video"  # without its files here it shows what is committed
        assert results["data"]["name"] == ("davis2016" if real else "minimovi_a")
        assert len(results["data"]["ids"]) == (5 if real else 3)
        assert results["environment"]["packages"]["torch"]
        for model, entry in results["models"].items():
            assert {"video_fg_ari", "video_mbo"} <= set(entry["metrics"]), f"{name}: {model}"


@pytest.mark.slow
def test_student_and_control_differ_in_the_slotmatch_term_alone() -> None:
    config = read_results(smoke_book().runs / "03_distill" / "results.json")["config"]
    starts = config["starts from the teacher's"]
    assert starts["student"] == starts["undistilled"] != starts["scratch"] == []
    student, control = (config["training"][name] for name in ("student", "undistilled"))
    assert {key for key in student if student[key] != control[key]} == {"match_weight"}
    assert control["match_weight"] == 0
