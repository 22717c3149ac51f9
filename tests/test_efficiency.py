"""The lighter student, and the page that counts and measures what models cost."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from conftest import Book, Run

from slotmatch import paths
from slotmatch.experiments import decoders, lighter, select
from slotmatch.model import VideoSlotModel
from slotmatch.profiling import count_parameters
from slotmatch.reporting import efficiency
from slotmatch.reporting.report import TrainingParameters
from slotmatch.reporting.results import read_results

LIGHTER = ["student, decoder 64", "student, decoder 32"]


def test_a_lighter_student_differs_in_its_decoder_alone() -> None:
    usual = select("mini", "minimovi_a")
    student = replace(usual.models.student, decoder_hidden=32)
    light = lighter(usual, 32)
    assert light == replace(usual, models=replace(usual.models, student=student))
    assert lighter(usual, usual.models.student.decoder_hidden) == usual
    # Layers slot 64 -> 32 -> 32 -> features + mask 1, and a position code for each of 256 patches.
    expected = 32 * 65 + 32 * 33 + (student.feature_dim + 1) * 33 + student.n_patches * 64
    found = count_parameters(VideoSlotModel(student, pretrained=False))
    assert found["decoder"][0] == expected


@pytest.mark.parametrize("width", [0, -64, 64.0])
def test_a_width_has_to_be_a_positive_number_of_units(width: Any) -> None:
    with pytest.raises(ValueError, match="decoder_hidden must be a whole number of 1 or more"):
        lighter(select("mini", "minimovi_a"), width)


def test_whether_to_train_is_a_parameter_of_its_own() -> None:
    given = dict.fromkeys(("seed", "steps"), 0) | {"dataset": "minimovi_a", "preset": "smoke"}
    given |= {"backbone": "embedded", "output": "x"}
    assert TrainingParameters(**given, train=True).train is True
    for wrong in (1, "yes"):
        with pytest.raises(ValueError, match=f"train must be True or False, got {wrong!r}"):
            TrainingParameters(**given, train=wrong)
    cell = {"In": ["# Parameters\ntrian = True\n"]}
    with pytest.raises(ValueError, match="did you mean 'train'"):
        TrainingParameters.from_notebook(given | cell, notebook="05_efficiency")


# The tables


@pytest.fixture(scope="module")
def counts() -> efficiency.Counts:
    return efficiency.count(efficiency.MEASURED)


@cache
def measured() -> dict[str, Any]:
    return read_results(paths.RESULTS / "benchmarks" / "results.json")


def test_the_papers_sizes_are_counted(counts: efficiency.Counts) -> None:
    table = efficiency.parameter_table(counts)
    assert list(table.loc["total"]) == ["91,533,313", "25,631,617", "91,023,553", "25,171,009"]
    assert list(table["movi_e"].loc["trainable"]) == ["4,953,601", "3,575,425"]
    flops = efficiency.flops_table(counts)
    plain = flops[["GFLOP, plain teacher", "GFLOP, plain student"]]
    assert list(plain.loc["movi_e"]) == pytest.approx([164.6, 76.7], rel=0.01)
    assert list(plain.loc["ytvis2021"]) == pytest.approx([363.2, 143.4], rel=0.01)
    assert list(flops["times fewer parameters"]) == pytest.approx([3.571, 3.616], abs=1e-3)
    ratios = {"trainable parameters": 4_953_601 / 3_575_425, "FLOPs, plain": 164.57 / 76.74}
    fast = [counts.fast["movi_e", role]["total"] for role in ("teacher", "student")]
    for what, ratio in (ratios | {"FLOPs, fast": fast[0] / fast[1]}).items():
        assert flops.loc["movi_e", f"times fewer {what}"] == pytest.approx(ratio, rel=1e-3)
    share = efficiency.decoder_share(counts).squeeze()
    own = counts.plain["movi_e", "student"]
    assert share["movi_e"] == pytest.approx(100 * own["decoder"] / own["total"])
    record = counts.record()["movi_e"]["student"]
    assert record["flops, plain"] == own
    assert record["parameters"]["total"] == 25_631_617


def test_the_committed_counts_are_todays(counts: efficiency.Counts) -> None:
    committed = read_results(paths.RESULTS / "lighter" / "results.json")
    for name, own in counts.record().items():
        assert committed["full size"][name] == own, name


def test_narrower_students_cost_less(counts: efficiency.Counts) -> None:
    students = efficiency.narrower(("movi_e",))
    costs = [own.gflop for own in students["movi_e"].values()]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == pytest.approx(counts.fast["movi_e", "student"]["total"] / 1e9)
    table = efficiency.narrower_table(students, counts)
    first, *_, last = table.index
    assert (first[1], last[1]) == ("decoder width 1024", "attention masks, no decoder")
    assert table.loc[first, "times fewer parameters"] == pytest.approx(91_533_313 / 25_631_617)
    assert table.loc[last, "times fewer FLOPs"] == pytest.approx(164.57 / costs[-1], rel=1e-3)


def test_times_stand_with_their_machine_and_their_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficiency.torch.cuda, "is_available", lambda: False)
    found, origin = efficiency.benchmarks(tmp_path / "benchmarks.json")
    assert (found, origin) == (measured(), "committed")
    assert (
        efficiency.machine(found)
        == "Intel(R) Xeon(R) Processor, 2 threads of 2 cores, torch 2.14.1"
    )
    table = efficiency.benchmark_table(found["measurements"]["a"][0])
    row = table.loc["fast student"]
    assert row["parameters"] == "25,631,617"
    assert row["ms per frame"] == "236.1"
    assert row["times faster than plain teacher"] == "2.48 [2.46, 2.58]"


def test_half_precision_tells_how_many_patches_keep_their_slot() -> None:
    row = {"GFLOP": 1, "total": 2, "times faster": 1, "from": 1, "to": 1, "MiB added": 3}
    ways = {"student": {**row, "same slot, %": None}, "student, bf16": {**row, "same slot, %": 99}}
    comparison = {"unit": "ms per frame", "baseline": "student", "summary": ways}
    table = efficiency.benchmark_table(comparison)
    assert list(table["same slot, %"]) == ["-", "99.0"]


def test_a_speed_up_is_the_median_ratio_of_the_turns() -> None:
    ways = {"plain teacher": [8, 8, 8], "plain student": [4, 2, 8], "fast teacher": [6, 6, 6]}
    ways["fast student"] = [3, 3, 3]
    turns = {way: [{"total": time} for time in times] for way, times in ways.items()}
    found = efficiency.speedups(
        {"measurements": {"a": [{"title": "(a) inference, movi_e", "turns": turns}]}}
    )
    assert found == {
        "movi_e": {
            "times faster": "2.00 [1.50, 3.00]",
            "times faster, both fast": "2.00 [2.00, 2.00]",
            "times faster, fast student, plain teacher": "2.67 [2.67, 2.67]",
        }
    }


def test_what_is_reported_stands_apart_from_what_was_measured(counts: efficiency.Counts) -> None:
    here = efficiency.claims(counts, measured())
    assert {name: own["times fewer parameters"] for name, own in here.items()} == {
        "movi_e": "3.57",
        "ytvis2021": "3.62",
    }
    table = efficiency.claims_table(here)
    assert list(table["reported"].squeeze()) == ["3.6", "up to 2.7 (1.9 in version 1)", *"---"]
    ours = table["counted and measured here"]
    assert list(ours["movi_e"]) == list(here["movi_e"].values())


def test_scores_of_lighter_students_are_compared_with_the_student() -> None:
    found = decoders.committed_students(select("mini", "minimovi_a"))
    table = efficiency.lighter_table(found)
    assert list(table.index) == ["teacher", "student", *LIGHTER, "student, attention masks"]
    assert table.loc["student", "FG-ARI against the student"] == "-"
    assert table.loc["student, attention masks", "FG-ARI against the student"][0] == "+"
    assert table.loc["teacher", "times faster than the teacher"] == "-"
    assert table.loc["student", "times faster than the teacher"] == "4.35 [4.07, 4.41]"


def test_committed_scores_of_another_recipe_are_refused() -> None:
    with pytest.raises(ValueError, match=r"another teacher, recipe or data version.*-p train True"):
        decoders.committed_students(select("mini", "minimovi_a", steps=5))


# The page


@pytest.mark.slow
def test_lighter_students_are_trained_when_told_to(run_notebook: Callable[..., Run]) -> None:
    run = run_notebook("05_efficiency", "preset=smoke", "steps=3", "train=True")
    results = run.results()
    assert nbformat.reads(run.out, as_version=4).cells
    output = run.folder / "runs" / "05_efficiency.minimovi_a.smoke.seed0"
    for name in ("student", "student-64", "student-32"):
        file = output / f"{name}.safetensors"
        title = name.replace("-", ", decoder ")
        assert results["config"]["checkpoints"][title] == paths.checksum(file)
    entries = results["models"]
    assert list(entries) == ["teacher", "student", *LIGHTER, "student, attention masks"]
    assert results["config"]["parameters"]["train"] is True
    recipes = results["config"]["recipes"]
    assert [recipes[name]["training"]["steps"] for name in ("student", *LIGHTER)] == [3, 3, 3]
    student = recipes["student"]
    assert all(recipes[name]["training"] == student["training"] for name in LIGHTER)
    widths = [recipes[name]["model"].pop("decoder_hidden") for name in ("student", *LIGHTER)]
    assert widths == [128, 64, 32]
    assert all(recipes[name]["model"] == student["model"] for name in LIGHTER)
    costs = pd.DataFrame(entries).T[["parameters", "gflop"]].astype(float)
    assert (costs.diff().dropna() < 0).all(axis=None), "each costs less than the one before"
    for entry in entries.values():
        assert len(entry["metrics"]["video_fg_ari"]) == len(results["data"]["ids"])
        assert entry["ms_per_frame"] > 0


@pytest.mark.slow
def test_another_choice_than_the_committed_one_trains_untold(book: Book) -> None:
    config = book.results("05_efficiency")["config"]
    assert config["parameters"]["train"] is False
    assert json.dumps(config["recipes"]).count('"steps": 8') == 3
