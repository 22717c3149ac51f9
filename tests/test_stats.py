import math

import numpy as np
import pytest
from scipy import stats as reference

from slotmatch.reporting.stats import Interval, crossed, mean_interval, paired_difference


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(1).beta(5, 2, 100),
        np.random.default_rng(2).random(9) ** 4,
        np.array([0.0, 0.0, 0.0, 0.0, 1.0]),
    ],
    ids=["100 videos", "few and skewed", "few and coarse"],
)
@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_interval_is_the_bca_bootstrap(values, confidence):
    expected = reference.bootstrap(
        (values,),
        np.mean,
        confidence_level=confidence,
        n_resamples=2000,
        method="BCa",
        rng=np.random.default_rng(3),
    ).confidence_interval
    got = mean_interval(values, confidence=confidence, n_resamples=2000, seed=3)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high))
    assert got.mean == pytest.approx(values.mean())


def test_interval_covers_the_true_mean_as_often_as_it_says():
    samples = np.random.default_rng(4).normal(0.7, 0.1, (300, 30))
    intervals = [mean_interval(sample, confidence=0.9, n_resamples=999) for sample in samples]
    covered = np.mean([interval.low <= 0.7 <= interval.high for interval in intervals])
    assert covered == pytest.approx(0.9, abs=0.05)


def test_interval_moves_and_stretches_with_the_values():
    values = np.random.default_rng(5).random(20)
    plain, moved = mean_interval(values), mean_interval(3 - 100 * values)
    assert moved.mean == pytest.approx(3 - 100 * plain.mean)
    # The draws stay the same, so reflection swaps the ends exactly.
    assert (moved.low, moved.high) == pytest.approx((3 - 100 * plain.high, 3 - 100 * plain.low))


def test_equal_seeds_give_equal_intervals_whatever_happened_before():
    values = np.random.default_rng(6).random(12)
    first = mean_interval(values)
    mean_interval(values[:5], seed=9)
    assert mean_interval(list(values)) == first
    assert mean_interval(values, seed=1) != first


def test_values_without_spread():
    assert mean_interval([0.1] * 7) == Interval(0.1, 0.1, 0.1)
    single = mean_interval([0.4])
    assert single.mean == 0.4
    assert math.isnan(single.low)
    assert math.isnan(single.high)


def test_paired_difference_is_free_of_what_the_videos_share():
    rng = np.random.default_rng(7)
    difficulty = rng.normal(0.6, 0.2, 40)
    better = difficulty + 0.03 + rng.normal(0, 0.01, 40)
    difference = paired_difference(better, difficulty)
    assert difference == mean_interval(better - difficulty)
    assert 0.02 < difference.low < difference.mean < difference.high < 0.04
    assert mean_interval(better).low < mean_interval(difficulty).high  # hidden when unpaired
    reverse = paired_difference(difficulty, better)
    assert (reverse.low, reverse.high) == pytest.approx((-difference.high, -difference.low))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), r"one number per video.*\(0,\)"),
        (lambda: mean_interval([[0.1, 0.2]]), r"got shape \(1, 2\)"),
        (lambda: mean_interval([0.1, math.nan]), "1 of 2 values are nan: drop skipped videos"),
        (lambda: mean_interval([0.1, math.inf]), "1 of 2 values are infinite"),
        (lambda: mean_interval([0.1, 0.2], confidence=95), "between 0 and 1, got 95"),
        (lambda: mean_interval([0.1, 0.2], n_resamples=0), "at least 1, got 0"),
        (lambda: paired_difference([0.1, 0.2], [0.1]), "a has 2 values and b 1"),
        (lambda: paired_difference([0.1], [math.nan]), "1 of 1 b are nan"),
    ],
)
def test_errors_name_the_value_and_the_fix(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("values", "squares", "variance", "parts"),
    [
        # Seeds differ by 5, videos by 3, and 1 is left.
        ([[1, 3], [5, 9]], (25, 9, 1), 25 + 9 - 1, (12, 4, 1)),
        # So much is left that the estimate falls below the seeds' own mean square, or the videos'.
        ([[1, 3], [4, 3]], (2.25, 0.25, 2.25), 2.25, (0, 0, 2.25)),
        ([[1, 4], [3, 3]], (0.25, 2.25, 2.25), 2.25, (0, 0, 2.25)),
    ],
)
def test_interval_over_seeds_and_videos_by_hand(values, squares, variance, parts):
    found = crossed(values)
    mean, error = np.mean(values), math.sqrt(variance / 4)
    freedom = variance**2 / sum(square**2 for square in squares)
    half = reference.t.ppf(0.975, freedom) * error
    assert found.interval() == pytest.approx((mean, mean - half, mean + half))
    assert found.p_value == pytest.approx(2 * reference.t.sf(mean / error, freedom))
    assert (found.seeds, found.videos, found.rest) == pytest.approx(parts)
    assert crossed(np.negative(values)).p_value == pytest.approx(found.p_value)
    assert crossed(np.full((2, 3), 0.5)).interval() == Interval(0.5, 0.5, 0.5)


def test_interval_over_seeds_and_videos_covers_the_true_mean():
    """As often as it says, or somewhat more; one over videos alone is wrong by its very idea."""
    rng = np.random.default_rng(7)
    covered = {"crossed": 0, "videos": 0}
    for _ in range(400):
        seeds, videos, rest = (
            rng.normal(0, 2, (5, 1)),
            rng.normal(0, 4, 40),
            rng.normal(0, 3, (5, 40)),
        )
        values = 1 + seeds + videos + rest
        found = {
            "crossed": crossed(values).interval(),
            "videos": mean_interval(values.mean(0), n_resamples=499),
        }
        for name, own in found.items():
            covered[name] += own.low <= 1 <= own.high
    assert 0.93 <= covered["crossed"] / 400 <= 0.99
    assert covered["videos"] / 400 < 0.85


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0, 2.0]], [[1.0], [2.0]], [[1, math.nan]] * 2])
def test_one_seed_one_video_or_a_skipped_one_have_no_such_interval(values):
    with pytest.raises(ValueError, match=r"\(seeds, videos\) with 2 or more of each"):
        crossed(values)
    with pytest.raises(ValueError, match="confidence must be between 0 and 1, got 95"):
        crossed([[1, 2], [3, 4]]).interval(95)


def test_an_interval_reads_as_papers_print_it():
    own = Interval(0.7012, 0.68, 0.722).times(100)
    assert f"{own:.1f}" == "70.1 [68.0, 72.2]"
    assert f"{own:+.0f}" == "+70 [+68, +72]"
    assert f"{Interval(1.25, math.nan, math.nan):.2f}" == "1.25"
