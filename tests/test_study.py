"""The run matrix: what it trains, what it chooses, when a result is stale, and that it goes on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import result

from slotmatch import paths
from slotmatch.experiments import study
from slotmatch.experiments.conditions import (
    ALIKE,
    BETA,
    METHODS,
    N_TEST,
    SHARES,
    STEPS,
    VIDEOSAUR,
    candidates,
    planned,
)
from slotmatch.experiments.select import SIZES
from slotmatch.experiments.students import RATES
from slotmatch.experiments.study import (
    Run,
    chosen,
    execute,
    finals,
    is_valid,
    launch,
    left,
    made_of,
    missing,
    seeds_planned,
    tryouts,
)
from slotmatch.model import INHERITABLE
from slotmatch.reporting.verdicts import MARGIN
from slotmatch.settings import Distillation, choices

METHOD = "slotmatch"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Smoke runs write here; the simulated videos are those that other tests made."""
    monkeypatch.setenv("SLOTMATCH_DATA", str(paths.data_dir()))
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path))
    study._scored_on.cache_clear()
    return tmp_path


def write(run: Run, scores: list[float]) -> None:
    """A result file with these scores."""
    run.path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"metrics": {"video_fg_ari": scores}}
    content = result({"student": entry}, len(scores), config=made_of(run), wall_seconds=120.0)
    run.path.write_text(json.dumps(content))


def test_conditions_differ_from_slotmatch_in_what_their_name_says() -> None:
    base = planned(candidates()["slotmatch"][f"{BETA:g}"], "minimovi_a")
    assert (base.student.steps, base.n_videos["test"]) == (STEPS, N_TEST)
    for method, settings in candidates().items():
        for condition in settings.values():
            own = planned(condition, "minimovi_a")
            differing = {
                name
                for name in vars(base.student)
                if getattr(own.student, name) != getattr(base.student, name)
            }
            longer = {"steps", "warmup_steps"} if method.startswith("longer") else set()
            assert differing == longer | {
                name
                for name, value in condition.training.items()
                if value != getattr(base.student, name)
            }
            assert longer or own.teacher == base.teacher  # which is not trained here
            assert own.n_videos == base.n_videos
            adds = method.startswith(("with_", "only_", "videosaur", "longer_with_"))
            assert bool(own.student.added) == adds
            assert (own.models == base.models) != method.startswith("teacher_eyes")
            if "no_term" in method or method.startswith(("only_", "image_only", "videosaur")):
                assert own.student.match_weight == 0
            if "hungarian" in method:
                assert own.student.correspondence == method.removeprefix("own_start_")
            inherited = {"own": (), "inherited": tuple(INHERITABLE)}
            kind = method.split("_")[0]
            assert condition.inherits == inherited.get(kind, ("initial_slots",))
            assert own.student.steps == (2 * STEPS if longer else STEPS)
            assert own.student.seed == 0
            frames = own.student.batch_size * own.student.clip_length
            assert frames == base.student.batch_size * base.student.clip_length
            if method.startswith("videosaur"):
                assert own.student.contrast_weight == 0
                assert not own.student.distils
    half, images = (
        planned(next(iter(candidates()[method].values())), "minimovi_a").student
        for method in ("half_contrast", "image_only")
    )
    assert 2 * half.contrast_weight == base.student.contrast_weight
    assert images.longest == 1


def test_every_added_loss_is_tried_like_slotmatch_itself() -> None:
    for loss in choices(Distillation):
        for kind in ("with", "only"):
            tried = candidates()[f"{kind}_{loss}"]
            weights = [condition.training["added"][loss] for condition in tried.values()]
            assert len(weights) == len(candidates()["slotmatch"]) == 3
            np.testing.assert_allclose(np.divide(weights, weights[1]), [0.3, 1, 3])


def test_videosaur_is_a_baseline_and_none_of_the_losses_that_are_judged() -> None:
    assert len(choices(Distillation)) == 8
    judged = {f"{kind}_{loss}" for kind in ("with", "only") for loss in choices(Distillation)}
    assert {name for name in METHODS if name.startswith(("with_", "only_"))} == judged
    alone, beside = (candidates()[f"videosaur{kind}"] for kind in ("", "_reconstruction"))
    for settings, reconstruction, weight in ((alone, 0, 1), (beside, 1, VIDEOSAUR)):
        assert list(settings) == list(candidates()["no_term"])  # rates
        for condition in settings.values():
            student = planned(condition, "minimovi_a").student
            assert student.reconstruction_weight == reconstruction
            assert student.added == {"temporal_similarity": weight}


def test_what_has_nothing_to_follow_is_tried_at_three_rates() -> None:
    for method, settings in candidates().items():
        trained = [planned(condition, "minimovi_a").student for condition in settings.values()]
        if not trained[0].match_weight and not method.startswith("only_"):
            assert [student.learning_rate for student in trained] == list(RATES), method
        else:
            assert {student.learning_rate for student in trained} == {RATES[-1]}, method


def test_ten_seeds_are_planned_where_a_verdict_is() -> None:
    assert {method for method in METHODS if seeds_planned(method) == 10} == {
        "slotmatch",
        *(f"with_{loss}" for loss in choices(Distillation)),
    }
    runs = finals(["slotmatch", "no_term"])
    assert [sum(run.method == method for run in runs) for method in ("slotmatch", "no_term")] == [
        10,
        5,
    ]
    assert len(finals(["slotmatch"], "minimovi_c")) == 5


def test_others_are_compared_with_slotmatch_at_its_best() -> None:
    assert chosen("slotmatch") == f"{BETA:g}"


def test_settings_are_chosen_on_validation_and_scored_on_test(own_cache: Path) -> None:
    runs = tryouts([METHOD, "shifted"], preset="smoke")
    assert [run.setting for run in runs] == ["1", "3", "10"]  # shifted has nothing to choose
    with pytest.raises(FileNotFoundError, match="no results at"):
        chosen(METHOD, preset="smoke")
    for run, scores in zip(runs, ([0.4, 0.5], [0.9, float("nan")], [0.7, 0.8]), strict=True):
        assert run.split == "validation"
        write(run, scores)
    assert chosen(METHOD, preset="smoke") == "3"
    found = finals([METHOD, "shifted"], n_seeds=2, preset="smoke")
    assert [(run.method, run.setting, run.seed) for run in found] == [
        ("slotmatch", "3", 0),
        ("shifted", "", 0),
        ("slotmatch", "3", 1),
        ("shifted", "", 1),
    ]
    assert {run.split for run in found} == {"test"}
    assert missing(runs) == []
    assert left(runs) == "0 of 3 runs are left, 0 core-minutes"
    assert left([*runs, *found]) == "4 of 7 runs are left, 8 core-minutes"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher", "another"),
        ("backbone", "another"),
        ("inherits", []),
        ("videos", 5),
        ("version", 99),
        ("probe", [1.0] * 6),
    ],
)
def test_a_result_made_of_something_else_is_stale(own_cache: Path, key: str, value: object) -> None:
    run = Run("minimovi_a", METHOD, "3", 0, "validation", "smoke")
    write(run, [0.5])
    assert is_valid(run)
    content = json.loads(run.path.read_text())
    content["config"][key] = value
    run.path.write_text(json.dumps(content))
    assert not is_valid(run)
    assert missing([run]) == [run]


def test_a_probe_tells_losses_apart_and_forgives_rounding(own_cache: Path) -> None:
    run = Run("minimovi_a", METHOD, "3", 0, "validation", "smoke")
    write(run, [0.5])
    probe = made_of(run)["probe"]
    for change, valid in ((1e-5, True), (1e-3, False)):
        content = json.loads(run.path.read_text())
        content["config"]["probe"] = [(1 + change) * probe[0], *probe[1:]]
        run.path.write_text(json.dumps(content))
        assert is_valid(run) == valid
    probes = {
        tuple(made_of(Run("minimovi_a", method, setting, 0, "test", "smoke"))["probe"])
        for method, setting in (("slotmatch", "3"), ("no_term", "0.002"), ("with_relations", "1"))
    }
    assert len(probes) == 3


def test_the_best_permutation_is_kept_where_indices_need_not_agree() -> None:
    by_name = {name: next(iter(own.values())) for name, own in candidates().items()}
    more = {name for name, own in by_name.items() if "slot_cosine_permuted" in study.kept(own)}
    assert {"shifted", "shuffled", "hungarian", "own_start", "own_start_hungarian"} <= more
    assert not {"slotmatch", "no_term", "with_relations", "inherited"} & more


@pytest.mark.slow
def test_two_jobs_run_the_matrix_and_a_second_call_finds_it_done(own_cache: Path) -> None:
    runs = tryouts([METHOD], preset="smoke")
    command = [sys.executable, "-m", "slotmatch.experiments.study", "run", "--methods", METHOD]
    options = ["--preset", "smoke", "--seeds", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "to choose from: 3 of 3 runs are left",
        "to be scored on test videos: 1 of 1 runs are left",
    ]
    written = {run: run.path.read_bytes() for run in runs}
    for run in runs:
        found = json.loads(run.path.read_text())
        assert found["config"]["training"]["match_weight"] == float(run.setting)
        entry = found["models"]["student"]
        assert {*entry["metrics"]} == {*study.KEPT}
        assert entry["curve"]["step"] == [8]
    launch(runs)
    assert {run: run.path.read_bytes() for run in runs} == written
    scored = finals([METHOD], n_seeds=1, preset="smoke")[0]
    before = json.loads(runs[0].path.read_text())
    after = json.loads(scored.path.read_text())
    scored.path.unlink()
    execute(scored)  # from the weights that are there
    again = json.loads(scored.path.read_text())
    assert again["models"] == after["models"]
    assert after["data"]["split"] == "test"
    assert before["data"]["split"] == "validation"
    assert scored.weights.is_file()


@pytest.mark.slow
def test_a_job_that_fails_names_its_log(own_cache: Path) -> None:
    nowhere = Run("minimovi_a", METHOD, "3", 0, "train", "smoke")
    nowhere.path.parent.mkdir(parents=True)
    nowhere.path.mkdir()  # where the file should go
    with pytest.raises(RuntimeError, match="failed, its log"):
        launch([nowhere], n_workers=1)


@pytest.mark.slow
def test_committed_results_are_what_the_code_would_give() -> None:
    kept = sorted((paths.RESULTS / "study").rglob("*.json"))
    runs = {
        run.path: run
        for run in [
            Run(dataset, method, setting, seed, split)
            for dataset in ("minimovi_a", "minimovi_c", "minimovi_d", "minimovi_e")
            for method in METHODS
            for setting in candidates()[method]
            for seed in range(10)
            for split in ("validation", "test")
        ]
    }
    assert [path for path in kept if path not in runs] == []
    stale = [path.name for path in kept if not is_valid(runs[path])]
    assert stale == []


def test_the_plan_in_the_book_is_the_code() -> None:
    page = " ".join((paths.REPOSITORY / "book" / "study.md").read_text().split())
    for loss in choices(Distillation):
        weights = [f"{own:g}" for own in (ALIKE[loss] * share for share in SHARES)]
        assert f"| {', '.join(weights)} |" in page, loss
        assert f"| `{loss}` |" in page
    assert f"with VideoSAUR's weight of {VIDEOSAUR:g}" in page
    for method in METHODS:
        if not method.startswith(("with_", "only_", "longer_with_")):
            assert f"`{method}`" in page, method
    betas = ", ".join(candidates()["slotmatch"])
    shown = (
        f"{STEPS} steps",
        f"beta of {BETA:g}",
        f"values of beta ({betas})",
        f"{study.MAIN_SEEDS} seeds of SlotMatch and of each added loss",
        f"{study.SEEDS} of each other method",
    )
    shown += (f"{N_TEST} test videos", f"within {MARGIN:g} points")
    shown += (f"on {SIZES['mini']['validation']} validation videos",)
    assert [text for text in shown if text not in page] == []
