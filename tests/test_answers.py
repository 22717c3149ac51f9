"""What the page of results says of the study's files: numbers by hand, and that it follows them."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import result

from slotmatch import paths
from slotmatch.experiments import answers
from slotmatch.experiments.conditions import HELPED, METHODS, candidates
from slotmatch.experiments.study import Run
from slotmatch.reporting.stats import Interval, crossed
from slotmatch.reporting.verdicts import MARGIN, Verdict, power
from slotmatch.settings import Distillation, choices

LOSSES = choices(Distillation)
N_VIDEOS = 40


def write(
    run: Run, scores: Sequence[float], curve: Sequence[float] = (0.1, 0.2, 0.3), cosine: float = 0.8
) -> None:
    """A result file of these scores, in which mBO is half of FG-ARI."""
    fg_ari = [float(score) for score in scores]
    metrics = {
        "video_fg_ari": [None if np.isnan(one) else one for one in fg_ari],
        "video_mbo": [None if np.isnan(one) else one / 2 for one in fg_ari],
        "slot_cosine": [cosine] * len(fg_ari),
        "same_slot_objects": [None if np.isnan(one) else 0.66 for one in fg_ari],
    }
    steps = {"step": [500, 1000, 1500]}
    entry = {
        "metrics": metrics,
        "curve": steps
        | {
            "validation_video_fg_ari": list(curve),
            "validation_slot_cosine": [0.0, cosine / 2, cosine],
        },
    }
    run.path.parent.mkdir(parents=True, exist_ok=True)
    content = result({"student": entry}, len(fg_ari), seeds=[run.seed])
    run.path.write_text(json.dumps(content))


@pytest.fixture
def study_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes runs of methods: a mean difference to SlotMatch each, in points."""
    monkeypatch.setattr(paths, "RESULTS", tmp_path)

    def fill(effects: dict[str, float], n_seeds: int = 5, spread: float = 0.4) -> None:
        rng = np.random.default_rng(0)
        videos = rng.uniform(50, 70, N_VIDEOS)
        for method, effect in effects.items():
            settings = list(candidates()[method])
            for rank, setting in enumerate(settings):
                write(
                    Run("minimovi_a", method, setting, 0, "validation"),
                    [0.5 + 0.01 * (rank == len(settings) // 2)] * 3,
                )
            best = settings[len(settings) // 2]
            for seed in range(n_seeds):
                noise = rng.normal(0, spread) + rng.normal(0, 2 * spread, N_VIDEOS)
                run = Run("minimovi_a", method, best, seed, "test")
                write(run, (videos + effect + noise) / 100)

    return fill


def test_nothing_is_shown_without_slotmatch(study_of: Callable[..., None]) -> None:
    study_of({"no_term": 0})
    with pytest.raises(FileNotFoundError, match="study run --dataset minimovi_a"):
        answers.read_study()


def test_every_method_has_a_name() -> None:
    assert set(answers.NAMES) == set(METHODS)
    assert len(set(answers.NAMES.values())) == len(METHODS)


def test_values_and_differences_by_hand(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0}, n_seeds=1)
    for method, rows in {
        "slotmatch": ([0.5, np.nan, 0.3], [0.6, np.nan, 0.4]),
        "own_start": ([0.7, 0.9, 0.3], [0.5, 0.9, 0.1], [0.0, 0.0, 0.0]),
    }.items():
        settings = list(candidates()[method])
        for seed, scores in enumerate(rows):
            write(Run("minimovi_a", method, settings[len(settings) // 2], seed, "test"), scores)
    found = answers.read_study()
    assert [run["seeds"] for run in found["own_start"]] == [[0], [1], [2]]
    np.testing.assert_allclose(answers.values(found, "own_start", "video_mbo")[0], [35, 45, 15])
    # The third seed has no partner and the second video no score.
    np.testing.assert_allclose(
        answers.differences(found, "own_start", "video_fg_ari"), [[20, 0], [-10, -30]]
    )
    row = answers.score_table(found, ["slotmatch"]).loc["SlotMatch"]
    assert row["FG-ARI"].startswith("45.0 [")
    assert row["on objects, %"] == "66"


def test_two_methods_are_told_apart(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "inherited": 10})
    assert "not run" in answers.apart(answers.read_study(), "inherited", "inherited_no_term")
    study_of({"inherited_no_term": 2})
    found = answers.read_study()
    told = answers.apart(found, "inherited", "inherited_no_term")
    assert re.search(r"^\+[78]\.\d \[.* points of FG-ARI and \+[34]\.\d \[.* points of mBO", told)
    assert told.endswith("(5 seeds of each)")
    assert re.search(r"^-[78]\.\d", answers.apart(found, "inherited_no_term", "inherited"))


def test_whether_help_lasts_is_a_verdict(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "longer": 5})
    assert "not known yet" in answers.lasting(answers.read_study())
    study_of({"longer_with_slot_lengths": 5})
    told = answers.lasting(answers.read_study())
    assert told.startswith("Where students train twice as long, 3000 steps, the losses that helped")
    assert " are judged: slot lengths: redundant, " in told
    assert told.endswith("] points of mBO (5 seeds of each).")
    study_of({"longer_with_slot_lengths": 15})
    study_of({"longer_with_decoder_masks": 5})
    told = answers.lasting(answers.read_study())
    assert " slot lengths: helps, +" in told
    assert "; decoder masks: redundant, " in told
    assert "slot error" not in told
    study_of({f"longer_with_{loss}": 5 for loss in HELPED})
    told = answers.lasting(answers.read_study())
    assert "3000 steps, all losses that helped are redundant: slot error +" in told


def test_a_gap_in_the_seeds_ends_them(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "with_features": 0})
    setting = list(candidates()["with_features"])[1]
    Run("minimovi_a", "with_features", setting, 2, "test").path.unlink()
    found = answers.read_study()
    assert len(found["with_features"]) == 2
    told = answers.effort({f"with_{loss}": found["slotmatch"] for loss in LOSSES} | found)
    assert told == "These are 2 to 5 seeds of each, a look on the way: the plan asks for 10."


def test_a_method_without_a_choice_made_is_left_out(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "with_features": 0})
    setting = next(iter(candidates()["with_features"]))
    Run("minimovi_a", "with_features", setting, 0, "validation").path.unlink()
    assert set(answers.read_study()) == {"slotmatch"}


def test_the_claim_needs_every_loss(study_of: Callable[..., None]) -> None:
    every = {f"with_{loss}": 0.0 for loss in LOSSES}
    study_of({"slotmatch": 0, **every})
    found = answers.judged(answers.read_study(), "with")
    assert {own.word for own in found.values()} == {"redundant"}
    assert answers.claim(found) == "All 8 losses are redundant: the claim holds at this scale."
    assert answers.judged(answers.read_study(), "only") == {}
    assert answers.claim({}).startswith("None of the 8 losses was run")
    hurts = found | {"relations": replace(found["relations"], word="hurts")}
    assert "is not shown. Redundant: " in answers.claim(hurts)
    assert answers.claim(hurts).endswith("; hurts: relations.")
    study_of({"slotmatch": 0, **every}, n_seeds=10)
    assert answers.effort(answers.read_study()) == "These are 10 seeds of each, as planned."
    del found["features"]
    said = answers.claim(found)
    assert said.startswith("The claim that all 8 losses are redundant is not shown.")
    assert said.endswith("not run yet: features.")


def test_what_only_the_correction_undoes_is_told() -> None:
    def verdict(word: str, *mbo: float) -> Verdict:
        intervals = {"video_fg_ari": Interval(0.0, -1.0, 1.0), "video_mbo": Interval(*mbo)}
        return Verdict(word, intervals, intervals, {})  # type: ignore[arg-type]

    found = {
        "slot_error": verdict("undecided", 2, 0.5, 4),
        "features": verdict("redundant", 2, -0.5, 4),
        "relations": verdict("undecided", -2, -4, -0.5),
    }
    said = answers.leanings(found)
    assert "correction for 6 comparisons" in said
    told = "slot error (mBO +2.0 [+0.5, +4.0]), relations (mBO -2.0 [-4.0, -0.5])."
    assert said.endswith(f"exclude zero: {told}")
    found["slot_error"] = verdict("helps", 2, 0.5, 4)
    found["relations"] = verdict("hurts", -2, -4, -0.5)
    assert answers.leanings(found).startswith("No undecided or redundant loss")


def test_the_losses_that_were_set_apart_are_tested_on_later_seeds(
    study_of: Callable[..., None],
) -> None:
    every = {f"with_{loss}": 2.0 * (loss in answers.LEFT_OPEN) for loss in LOSSES}
    study_of({"slotmatch": 0, **every}, n_seeds=6)
    assert answers.left_open(answers.read_study()) == "Fewer than two seeds of each were run since."
    study_of({"slotmatch": 0, **every}, n_seeds=9)
    found = answers.read_study()
    for runs in found.values():  # what had been read before does not count
        for run in runs[:5]:
            run["models"]["student"]["metrics"]["video_fg_ari"] = [0.1] * N_VIDEOS
    told = answers.left_open(found)
    assert told.startswith("On the 4 seeds of each that were run since, they lie +")
    gap, low, high = map(float, re.findall(r"([+-][\d.]+)[\], ]", told)[:3])
    assert low < gap < high
    assert gap == pytest.approx(2, abs=0.6)
    assert told.endswith("from the other losses in the mean.")


def test_table_verdict_and_sentence_follow_a_file(study_of: Callable[..., None]) -> None:
    every = {f"with_{loss}": 0.0 for loss in LOSSES}
    study_of({"slotmatch": 0, **every})
    before = answers.verdict_table(answers.read_study(), "with")
    assert set(before["verdict"]) == {"redundant"}
    setting = list(candidates()["with_decoder_masks"])[1]
    for seed in range(5):
        path = Run("minimovi_a", "with_decoder_masks", setting, seed, "test").path
        content = json.loads(path.read_text())
        metrics = content["models"]["student"]["metrics"]
        metrics["video_fg_ari"] = [score + 0.08 for score in metrics["video_fg_ari"]]
        path.write_text(json.dumps(content))
    found = answers.read_study()
    after = answers.verdict_table(found, "with")
    changed = before.index[before["verdict"] != after["verdict"]]
    assert list(changed) == ["+ decoder masks"]
    row = after.loc["+ decoder masks"]
    assert row["verdict"] == "helps"
    assert row["weight"] == "2"
    assert row["seeds"] == "5"
    mean = answers.differences(found, "with_decoder_masks", "video_fg_ari").mean()
    assert row["FG-ARI, difference"].startswith(f"{mean:+.1f} [")
    outer, inner = (
        [float(end) for end in ends.split(", ")]
        for ends in re.findall(r"\[(.*?)\]", row["FG-ARI, difference"])
    )
    assert outer[0] <= inner[0] < mean < inner[1] <= outer[1]
    assert float(row["FG-ARI, p"]) < 0.05 < float(row["mBO, p"])
    words = answers.judged(found, "with")
    said = answers.claim(words)
    assert "refuted at this scale, for students of 1500 steps" in said
    effect = words["decoder_masks"].intervals["video_fg_ari"]
    assert f"helps: decoder masks (FG-ARI {effect:+.1f})." in said
    axes = answers.forest(found, "with").axes
    assert {own.get_text() for own in axes[-1].texts} == {"redundant", "helps"}
    assert axes[0].patches[0].get_x() == -MARGIN  # shaded
    rank = list(words).index("decoder_masks")
    thin, thick = (own.get_segments()[rank][:, 0] for own in axes[0].collections)
    assert thin == pytest.approx(words["decoder_masks"].intervals["video_fg_ari"][1:])
    assert thick == pytest.approx(words["decoder_masks"].narrower["video_fg_ari"][1:])


def test_scores_with_one_seed_have_no_interval(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "hungarian": -5, "own_start": -20})
    for seed in range(1, 5):
        Run("minimovi_a", "own_start", "", seed, "test").path.unlink()
    table = answers.score_table(answers.read_study(), answers.OTHERS)
    assert list(table.index) == ["SlotMatch", "Hungarian, per clip", "own initial slots"]
    assert table["slot cosine"].tolist() == ["0.80"] * 3
    assert table["on objects, %"].tolist() == ["66"] * 3
    assert table.loc["SlotMatch", "FG-ARI, more"] == "-"
    assert "[" in table.loc["Hungarian, per clip", "FG-ARI, more"]
    assert "[" not in table.loc["own initial slots", "FG-ARI"]
    assert float(table.loc["own initial slots", "FG-ARI, more"]) == pytest.approx(-20, abs=1)


def test_power_is_told_from_three_seeds_on(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "with_relations": 0}, n_seeds=5, spread=3.0)
    found = answers.read_study()
    table = answers.plan_power(found, n_draws=50)
    assert list(table.index) == ["+ relations"]
    pilot = crossed(answers.differences(found, "with_relations", "video_mbo")[:3])
    chances = power(pilot, n_seeds=5, n_videos=N_VIDEOS, n_tests=16, n_draws=50)
    assert table.filter(like="mBO").squeeze().tolist() == [
        f"{pilot.seeds**0.5:.1f}",
        f"{100 * chances['shown']:.0f} %",
        f"{100 * chances['redundant']:.0f} %",
    ]
    study_of({"slotmatch": 0, "with_relations": 0}, n_seeds=2)
    for seed in range(2, 5):
        setting = list(candidates()["with_relations"])[1]
        Run("minimovi_a", "with_relations", setting, seed, "test").path.unlink()
    found = answers.read_study()
    assert answers.plan_power(found, n_draws=50).empty
    assert list(answers.judged(found, "with")) == ["relations"]
    del found["with_relations"][1]
    assert answers.judged(found, "with") == {}


def test_curves_are_means_and_tell_what_is_saved(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "teacher_recipe": 0}, n_seeds=1)
    for method, rows in {
        "slotmatch": ([0.2, 0.4, 0.6], [0.4, 0.4, 0.7]),
        "teacher_recipe": ([0.1, 0.4, 0.3],),
    }.items():
        setting = list(candidates()[method])[1]
        for seed, curve in enumerate(rows):
            write(Run("minimovi_a", method, setting, seed, "test"), [0.5] * 3, curve)
    found = answers.read_study()
    curves = answers.curves(found, ["slotmatch", "teacher_recipe", "no_term"])
    assert list(curves.columns) == ["step", "SlotMatch", "teacher's recipe"]
    np.testing.assert_allclose(curves["SlotMatch"], [30, 40, 65])
    assert answers.steps_saved(found) == (
        "The best that *teacher's recipe* reaches in 1500 steps, 40.0, SlotMatch has by step 1000."
    )


def test_beta_curve_reads_one_rate(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "no_term": 0, "beta_30": 0}, n_seeds=1)
    write(Run("minimovi_a", "no_term", "0.004", 0, "validation"), [0.5], [0.0, 0.0, 0.07], 0.1)
    curve = answers.beta_curve()
    assert curve["beta"].tolist() == [0, 1, 3, 10, 30]
    assert curve["FG-ARI"].tolist() == pytest.approx([7, 30, 30, 30, 30])
    assert curve["cosine x 100"].tolist() == pytest.approx([10, 80, 80, 80, 80])


def test_what_was_not_run_is_named(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "hungarian": 0})
    found = answers.read_study()
    told = answers.not_run(found, ["slotmatch", "shifted", "own_start"])
    assert told == "Not run yet: shifted by one, own initial slots."
    assert answers.not_run(found, ["slotmatch", "hungarian"]) == ""


def test_every_candidate_is_listed(study_of: Callable[..., None]) -> None:
    study_of({"slotmatch": 0, "hungarian": 0, "with_features": 0})
    first = next(iter(candidates()["with_features"]))
    Run("minimovi_a", "with_features", first, 0, "validation").path.unlink()
    table = answers.tried_table(METHODS)  # of features not all were tried
    assert table.loc["SlotMatch"].tolist() == ["50.0 (1)", "51.0 (3)", "50.0 (10)"]
    assert list(table.index) == ["SlotMatch"]
