"""The lighter student, and the page that counts and measures what models cost."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
import pytest
from smoke_book import smoke_book

from slotmatch.experiments import lighter, select
from slotmatch.model import VideoSlotModel, start_from
from slotmatch.paths import NOTEBOOKS
from slotmatch.profiling import count_parameters
from slotmatch.reporting.report import TrainingParameters
from slotmatch.reporting.results import read_results

NOTEBOOK = NOTEBOOKS / "05_efficiency.ipynb"
LIGHTER = ["student, decoder 64", "student, decoder 32"]


def test_a_lighter_student_differs_in_its_decoder_alone() -> None:
    usual = select("mini", "minimovi_a")
    light = lighter(usual, 32)
    assert light.models.student == replace(usual.models.student, decoder_hidden=32)
    assert light.models.teacher == usual.models.teacher
    assert (light.student, light.dataset, light.n_videos) == (
        usual.student,
        usual.dataset,
        usual.n_videos,
    )
    assert set(usual.inherited) - set(light.inherited) == {"decoder"}


def test_at_its_teachers_width_nothing_changes() -> None:
    usual = select("mini", "minimovi_a")
    assert lighter(usual, usual.models.teacher.decoder_hidden) == usual


def test_a_lighter_student_starts_from_all_that_still_fits() -> None:
    light = lighter(select("mini", "minimovi_a"), 64)
    teacher, student = (
        VideoSlotModel(config, pretrained=False)
        for config in (light.models.teacher, light.models.student)
    )
    start_from(student, teacher, parts=light.inherited)
    assert student.predictor.state_dict().keys() == teacher.predictor.state_dict().keys()
    for name, weights in teacher.predictor.state_dict().items():
        assert (student.predictor.state_dict()[name] == weights).all(), name
    with pytest.raises(ValueError, match="decoder_hidden"):
        start_from(student, teacher, parts=("decoder",))
    # Layers slot 64 -> 64 -> 64 -> features 28 + mask 1, and a position code for each of 256
    # patches.
    config = light.models.student
    expected = 64 * 65 + 64 * 65 + (config.feature_dim + 1) * 65 + config.n_patches * 64
    assert count_parameters(student)["decoder"][0] == expected


@pytest.mark.parametrize("width", [0, -64, 64.0])
def test_a_width_has_to_be_a_positive_number_of_units(width: Any) -> None:
    with pytest.raises(ValueError, match="decoder_hidden must be a whole number of 1 or more"):
        lighter(select("mini", "minimovi_a"), width)


def test_whether_to_train_is_a_parameter_of_its_own() -> None:
    given = {
        **{"dataset": "minimovi_a", "preset": "smoke", "backbone": "embedded"},
        **{"seed": 0, "steps": 0, "output": "", "train": True},
    }
    cells = ["# Parameters\ntrain = True\n"]
    run = TrainingParameters.from_notebook({**given, "In": cells}, notebook="05_efficiency")
    assert run.train is True
    for wrong in (1, "yes"):
        with pytest.raises(ValueError, match=f"train must be True or False, got {wrong!r}"):
            TrainingParameters.from_notebook({**given, "train": wrong}, notebook="05_efficiency")
    with pytest.raises(ValueError, match="did you mean 'train'"):
        TrainingParameters.from_notebook(
            {**given, "In": ["# Parameters\ntrian = True\n"]}, notebook="05_efficiency"
        )


def test_committed_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@cache
def trained() -> dict[str, Any]:
    """The result file of the page with three steps of training, told to train."""
    smoke_book()  # its videos and features are in the cache now
    with TemporaryDirectory() as folder:
        parameters = ["-p", "preset", "smoke", "-p", "steps", "3", "-p", "train", "True"]
        command = [sys.executable, "-m", "papermill", str(NOTEBOOK), "-", *parameters]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stderr[-2000:]
        output = Path(folder) / "runs" / "05_efficiency.minimovi_a.smoke.seed0"
        for name in ("student", "student-64", "student-32"):
            assert (output / f"{name}.safetensors").is_file()
        return read_results(output / "results.json")


@pytest.mark.slow
def test_the_page_counts_the_papers_sizes() -> None:
    results = read_results(smoke_book().runs / "05_efficiency" / "results.json")
    full = results["full size"]
    totals = {
        name: [full[name][role]["parameters"]["total"] for role in ("teacher", "student")]
        for name in ("movi_e", "ytvis2021")
    }
    assert totals == {"movi_e": [91_533_313, 25_631_617], "ytvis2021": [91_023_553, 25_171_009]}
    plain = {
        name: [full[name][role]["flops, plain"]["total"] / 1e9 for role in ("teacher", "student")]
        for name in totals
    }
    assert plain["movi_e"] == pytest.approx([164.6, 76.7], rel=0.01)
    assert plain["ytvis2021"] == pytest.approx([363.2, 143.4], rel=0.01)
    for name, ways in results["lighter, full size"].items():
        costs = [entry["gflop"] for entry in ways.values()]
        assert costs == sorted(costs, reverse=True), name
        assert costs[0] == pytest.approx(full[name]["student"]["flops, fast"]["total"] / 1e9)


@pytest.mark.slow
def test_what_is_reported_stands_apart_from_what_was_measured() -> None:
    claims = read_results(smoke_book().runs / "05_efficiency" / "results.json")["claims"]
    assert claims["reported"]["times fewer parameters"] == "3.6"
    assert claims["reported"]["times faster"].startswith("up to 2.7")
    here = {name: own["times fewer parameters"] for name, own in claims["here"].items()}
    assert here == {"movi_e": "3.57", "ytvis2021": "3.62"}
    assert "threads" in claims["measured"]


@pytest.mark.slow
def test_lighter_students_are_trained_when_told_to() -> None:
    results = trained()
    entries = results["models"]
    assert list(entries) == ["teacher", "student", *LIGHTER, "student, attention masks"]
    assert results["config"]["parameters"]["train"] is True
    recipes = results["config"]["recipes"]
    assert [recipes[name]["training"]["steps"] for name in ("student", *LIGHTER)] == [3, 3, 3]
    assert all("decoder" not in recipes[name]["starts from the teacher's"] for name in LIGHTER)
    for what in ("parameters", "gflop"):
        costs = [entries[name][what] for name in entries]
        assert costs == sorted(costs, reverse=True), what
    for entry in entries.values():
        assert len(entry["metrics"]["video_fg_ari"]) == len(results["data"]["ids"])
        assert entry["ms_per_frame"] > 0


@pytest.mark.slow
def test_another_choice_than_the_committed_one_trains_untold() -> None:
    results = read_results(smoke_book().runs / "05_efficiency" / "results.json")
    assert results["config"]["parameters"]["train"] is False
    assert "made on" not in results["config"]
    assert json.dumps(results["config"]["recipes"]).count('"steps": 8') == 3
