"""Verdicts on losses: the rules by hand, and how often they err on data with known answers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from slotmatch.reporting.stats import Crossed, crossed
from slotmatch.reporting.verdicts import holm, power, verdicts

SEEDS, VIDEOS = 10, 60


def drawn(
    rng: np.random.Generator, effect: float = 0.0, spread: float = 1.0
) -> NDArray[np.float64]:
    """Differences in points with a true mean, where seeds and videos matter."""
    seeds, videos = rng.normal(0, spread, (SEEDS, 1)), rng.normal(0, 3 * spread, VIDEOS)
    return effect + seeds + videos + rng.normal(0, 4 * spread, (SEEDS, VIDEOS))


def words(**differences: dict[str, NDArray[np.float64]]) -> dict[str, str]:
    return {loss: own.word for loss, own in verdicts(differences).items()}


def test_the_words_say_what_the_differences_show() -> None:
    rng = np.random.default_rng(0)

    def both(fg_ari: float, mbo: float, spread: float = 0.5) -> dict[str, NDArray[np.float64]]:
        return {"fg_ari": drawn(rng, fg_ari, spread), "mbo": drawn(rng, mbo, spread)}

    assert words(
        better=both(8, 0),
        worse=both(0, -8),
        torn=both(8, -8),
        same=both(0.2, -0.2),
        noisy=both(0, 0, spread=8),
        shifted=both(2.9, 0, spread=0.3),
    ) == {
        "better": "helps",
        "worse": "hurts",
        "torn": "mixed",
        "same": "redundant",
        "noisy": "undecided",
        "shifted": "helps",
    }


def test_redundant_needs_every_metric_within_the_margin() -> None:
    rng = np.random.default_rng(1)
    narrow, wide = drawn(rng, 0, 0.3), drawn(rng, 0, 8)
    assert words(loss={"fg_ari": narrow, "mbo": narrow}) == {"loss": "redundant"}
    assert words(loss={"fg_ari": narrow, "mbo": wide}) == {"loss": "undecided"}
    found = verdicts({"loss": {"fg_ari": narrow}}, margin=0.01)["loss"]
    assert found.word == "undecided"
    assert found.narrower["fg_ari"] == crossed(narrow).interval(0.9)
    assert found.intervals["fg_ari"] == crossed(narrow).interval(0.95)
    within = drawn(rng)
    within -= within.mean()
    within *= 2 / crossed(within).interval(0.9).high
    said = {shift: words(loss={"fg_ari": within + shift})["loss"] for shift in (-1.5, 0, 1.5)}
    assert said == {-1.5: "undecided", 0: "redundant", 1.5: "undecided"}


def test_p_values_are_corrected_over_losses_and_metrics() -> None:
    rng = np.random.default_rng(1)
    sure, unsure = drawn(rng, 4), drawn(rng)
    found = verdicts({"one": {"fg_ari": sure, "mbo": unsure}, "other": {"fg_ari": unsure}})
    assert found["one"].p_values["fg_ari"] == pytest.approx(3 * crossed(sure).p_value)
    expected = min(1, 2 * crossed(unsure).p_value)
    assert found["one"].p_values["mbo"] == pytest.approx(expected)
    assert found["other"].p_values["fg_ari"] == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_many_useless_losses_rarely_seem_to_help() -> None:
    """The chance of one false word among all is held, at sixteen comparisons."""
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(150):
        losses = {f"loss {i}": {m: drawn(rng) for m in ("fg_ari", "mbo")} for i in range(8)}
        false += any(own.word in ("helps", "hurts", "mixed") for own in verdicts(losses).values())
    assert false / 150 < 0.1


def test_a_loss_that_matters_is_rarely_called_redundant() -> None:
    rng = np.random.default_rng(3)
    said = [verdicts({"loss": {"fg_ari": drawn(rng, 3.0)}})["loss"].word for _ in range(300)]
    assert said.count("redundant") / 300 < 0.08


def test_variances_are_those_that_were_drawn() -> None:
    rng = np.random.default_rng(4)
    found = [crossed(drawn(rng, 5, 2.0)) for _ in range(300)]
    assert np.mean([one.seeds for one in found]) == pytest.approx(4, rel=0.15)
    assert np.mean([one.videos for one in found]) == pytest.approx(36, rel=0.15)
    assert np.mean([one.rest for one in found]) == pytest.approx(64, rel=0.1)
    errors = [one.mean - 5 for one in found]
    assert np.mean([one.error for one in found]) == pytest.approx(np.std(errors), rel=0.15)


def test_power_grows_with_seeds_and_falls_with_the_number_of_tests() -> None:
    pilot = crossed(drawn(np.random.default_rng(5), spread=2.0))
    few = power(pilot, n_seeds=3, n_videos=60, n_draws=300)
    many = power(pilot, n_seeds=12, n_videos=300, n_draws=300)
    assert many["shown"] > few["shown"] + 0.2
    assert many["redundant"] > few["redundant"] + 0.2
    assert power(pilot, n_seeds=3, n_videos=60, n_tests=16, n_draws=300)["shown"] < few["shown"]


def test_power_draws_from_the_variances_of_the_pilot(monkeypatch: pytest.MonkeyPatch) -> None:
    pilot = Crossed(mean=7.0, error=1.0, freedom=5.0, seeds=4.0, videos=9.0, rest=16.0)
    plan = {"n_seeds": 6, "n_videos": 30, "n_draws": 200, "effect": 2.0}
    found: list[Crossed] = []
    with monkeypatch.context() as patch:
        seen = lambda values: found.append(crossed(values)) or found[-1]  # noqa: E731
        patch.setattr("slotmatch.reporting.verdicts.crossed", seen)
        chances = power(pilot, **plan)
    assert chances == power(pilot, **plan)
    for name in ("seeds", "videos", "rest"):
        mean = np.mean([getattr(one, name) for one in found])
        assert mean == pytest.approx(getattr(pilot, name), rel=0.2), name
    assert np.mean([one.mean for one in found[::2]]) == pytest.approx(2, abs=0.3)
    assert np.mean([one.mean for one in found[1::2]]) == pytest.approx(0, abs=0.3)
    inside = [max(map(abs, one.interval(0.9)[1:])) < 3 for one in found[1::2]]
    assert chances["redundant"] == np.mean(inside)


def test_a_p_value_and_its_interval_agree() -> None:
    rng = np.random.default_rng(6)
    for effect in (0.0, 0.5, 1.0, 2.0):
        found = crossed(drawn(rng, effect))
        interval = found.interval(0.95)
        assert (found.p_value < 0.05) == (interval.low > 0 or interval.high < 0)
    assert crossed(np.zeros((2, 3))).p_value == 1
    assert crossed(np.ones((2, 3))).p_value == 0


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ValueError, match="one loss or more"):
        verdicts({})
    with pytest.raises(ValueError, match="margin must be above 0"):
        verdicts({"loss": {"fg_ari": np.zeros((2, 2))}}, margin=0)
