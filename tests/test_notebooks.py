"""The committed notebooks as a user runs them: through papermill, from a shell."""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from conftest import Book, Run

from slotmatch.paths import NOTEBOOKS, REPOSITORY
from slotmatch.reporting.report import Parameters
from slotmatch.reporting.results import FIDELITY

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
ADDRESS = yaml.safe_load((REPOSITORY / "_config.yml").read_text())["repository"]["url"]


READING = ("04_tables", "06_redundancy")
"""Those that show committed results, whatever the preset."""


def test_there_are_nine() -> None:
    assert [
        *("00_slots", "01_data", "02_teacher", "03_distill", "04_tables", "05_efficiency"),
        *("06_redundancy", "07_browse", "08_real_video"),
    ] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_explained(name: str) -> None:
    told = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
    for parameter, field in Parameters.__dataclass_fields__.items():
        kind = getattr(field.type, "__name__", field.type)
        assert told[parameter]["inferred_type_name"] == kind
        assert len(told[parameter]["help"]) > 10


def installing(name: str) -> str:
    """The cell after the title, which fetches the repository where a notebook is hosted."""
    cell = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells[1]
    assert cell.metadata["tags"] == ["install", "remove-cell"]
    return cell.source


def test_every_notebook_can_be_hosted_by_itself() -> None:
    (cell,) = {installing(name) for name in NAMES}
    assert f"git clone --quiet --depth 1 {ADDRESS}\n" in cell


@pytest.mark.slow
def test_a_hosted_notebook_installs_the_package(tmp_path: Path) -> None:
    """In an environment that has all but the package, with a copy of it in GitHub's place."""
    venv.create(tmp_path / "env")
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    copy = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{REPOSITORY.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": ADDRESS,
    }
    offline = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
    own = {name: text for name, text in os.environ.items() if "PYTHON" not in name}
    python = tmp_path / "env" / "bin" / "python"
    cell = installing("03_distill") + "\nimport slotmatch.losses\nprint(slotmatch.losses.__file__)"
    done = subprocess.run(
        [python, "-m", "IPython", "--no-banner", "-c", cell],
        cwd=tmp_path,
        env=own | copy | offline | {"IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(tmp_path / "slotmatch" / "slotmatch" / "losses.py")


@pytest.mark.slow
def test_the_shell_tells_the_explanations() -> None:
    command = [sys.executable, "-m", "papermill", "--help-notebook"]
    path = str(NOTEBOOKS / "03_distill.ipynb")
    told = subprocess.run([*command, path], capture_output=True, text=True, check=True).stdout
    for parameter in Parameters.__dataclass_fields__:
        assert re.search(rf"  {parameter}: (str|int) \(default .*?\)\s+\S.*", told), parameter


@pytest.mark.slow
@pytest.mark.parametrize(
    ("notebook", "parameter", "complaint"),
    [
        ("03_distill", "dataset=movi_d", "-p dataset minimovi_d"),
        ("03_distill", "dataset=movid", "no data set is called 'movid'"),
        ("03_distill", "datset=minimovi_a", "did you mean 'dataset'"),
        ("03_distill", "preset=tiny", "preset must be one of ('smoke', 'mini', 'paper')"),
        ("04_tables", "preset=paper", "mini size, embedded backbones"),
        ("06_redundancy", "backbone=dinov2_vits14", "run at mini size with embedded backbones"),
        ("08_real_video", "dataset=minimovi_a", "not real video; choose davis2016 or davis2017"),
    ],
)
def test_what_does_not_exist_is_refused_in_the_first_cell(
    notebook: str, parameter: str, complaint: str, run_notebook: Callable[..., Run]
) -> None:
    run = run_notebook(notebook, parameter)
    assert run.code == 1
    assert complaint in run.err
    executed = nbformat.reads(run.out, as_version=4)
    details = [cell.metadata.get("papermill", {}) for cell in executed.cells]
    (failed,) = (detail for detail in details if detail.get("exception"))
    assert failed["duration"] < 30


@pytest.mark.slow
def test_each_run_says_what_it_was(book: Book) -> None:
    told = dict.fromkeys(NAMES, ("minimovi_a", 3))
    told |= dict.fromkeys(READING, ("minimovi_a", 300))
    told |= {"00_slots": ("minimovi_a", 1), "07_browse": ("minimovi", 3)}
    told |= {"08_real_video": ("davis2016", 5)}  # without its files it shows what is committed
    for name, (dataset, n_videos) in told.items():
        results = book.results(name)
        assert results["data"]["name"] == dataset
        assert len(results["data"]["ids"]) == n_videos
        assert results["environment"]["packages"]["torch"]
        for model, entry in results["models"].items():
            assert {"video_fg_ari", "video_mbo"} <= set(entry["metrics"]), f"{name}: {model}"


@pytest.mark.slow
def test_student_and_control_differ_in_the_slotmatch_term_and_their_best_rate(book: Book) -> None:
    training = book.results("03_distill")["config"]["training"]
    student, control = (training[name] for name in ("student", "no_term"))
    changed = {key for key in student if student[key] != control[key]}
    assert changed == {"match_weight", "learning_rate"}
    assert control["match_weight"] == 0


@pytest.mark.slow
def test_fidelity_stands_beside_every_score(book: Book) -> None:
    found = book.results("03_distill")
    for name in ("student", "no_term", "teacher_recipe"):
        metrics = found["models"][name]["metrics"]
        assert {"video_fg_ari", *FIDELITY} <= set(metrics)
        assert all(-1 <= value <= 1 for value in metrics["slot_cosine"])
    assert not {*FIDELITY} & set(found["models"]["teacher"]["metrics"])
