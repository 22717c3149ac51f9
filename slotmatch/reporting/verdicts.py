"""Whether a loss added to a method helps, hurts or is redundant: rules fixed before the runs.

A difference is one between two methods in one metric, scored with the same seeds on the same
videos: an array of seeds by videos. Its interval counts both as random
(`slotmatch.reporting.stats.crossed`).

* ``helps``, ``hurts``: some difference is not zero at level 0.05, after Holm's correction over all
  losses and metrics, and all such differences of the loss have this sign; ``mixed`` if they have
  both.
* ``redundant``: else, if for every metric the 90 % interval lies within the margin, which is two
  one-sided tests at level 0.05.
* ``undecided``: else. No difference shown is not the same as none.

That *all* losses are redundant is an intersection-union claim: it holds if each is, with no
correction.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from slotmatch.reporting.stats import Crossed, Interval, crossed

__all__ = ["MARGIN", "Verdict", "holm", "power", "verdicts"]

MARGIN = 3.0
"""Points of FG-ARI or mBO that would be too few to matter."""
LEVEL = 0.05

Word: TypeAlias = Literal["helps", "hurts", "mixed", "redundant", "undecided"]


@dataclass(frozen=True)
class Verdict:
    """What is said of a loss, and the 95 % and 90 % intervals and corrected p-values behind it."""

    word: Word
    intervals: Mapping[str, Interval]
    narrower: Mapping[str, Interval]
    p_values: Mapping[str, float]


def verdicts(
    differences: Mapping[str, Mapping[str, NDArray[Any]]], *, margin: float = MARGIN
) -> dict[str, Verdict]:
    """Of every loss, from its differences (m,n) to the method without it by metric.

    Args:
        differences: by loss and metric, in points; positive where the loss is better.
        margin: that would be too small to matter.

    Raises:
        ValueError: no losses, a margin that is not positive, or what ``crossed`` refuses.
    """
    if not differences or not all(differences.values()):
        raise ValueError("give the differences of one loss or more, in one metric or more")
    if not 0 < margin < np.inf:
        raise ValueError(f"margin must be above 0, got {margin}: how much would matter?")
    found = {
        loss: {metric: crossed(values) for metric, values in own.items()}
        for loss, own in differences.items()
    }
    pairs = [(loss, metric) for loss, own in found.items() for metric in own]
    corrected = dict(zip(pairs, holm([found[a][b].p_value for a, b in pairs]), strict=True))
    return {
        loss: _verdict(own, {metric: corrected[loss, metric] for metric in own}, margin)
        for loss, own in found.items()
    }


def _verdict(own: Mapping[str, Crossed], p_values: Mapping[str, float], margin: float) -> Verdict:
    shown = {np.sign(one.mean) for metric, one in own.items() if p_values[metric] < LEVEL}
    narrower = {metric: one.interval(1 - 2 * LEVEL) for metric, one in own.items()}
    word: Word
    if shown:
        word = "mixed" if len(shown) > 1 else "helps" if shown == {1} else "hurts"
    elif all(-margin < one.low and one.high < margin for one in narrower.values()):
        word = "redundant"
    else:
        word = "undecided"
    intervals = {metric: one.interval(1 - LEVEL) for metric, one in own.items()}
    return Verdict(word, intervals, narrower, dict(p_values))


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected for their number (Holm, 1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    grown = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(grown, 1)
    return [float(value) for value in corrected]


def power(
    pilot: Crossed,
    *,
    n_seeds: int,
    n_videos: int,
    n_tests: int = 1,
    effect: float = MARGIN,
    margin: float = MARGIN,
    n_draws: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Chances of a plan, if seeds and videos vary as in a pilot, by simulation.

    ``shown``: that a difference of ``effect`` is shown at the level of the first of ``n_tests``
    in Holm's correction; ``redundant``: that no difference at all ends within the margin.
    """
    rng = np.random.default_rng(seed)
    shown = redundant = 0
    for _ in range(n_draws):
        noise = (
            rng.normal(0, pilot.seeds**0.5, (n_seeds, 1))
            + rng.normal(0, pilot.videos**0.5, n_videos)
            + rng.normal(0, pilot.rest**0.5, (n_seeds, n_videos))
        )
        shown += crossed(noise + effect).p_value < LEVEL / n_tests
        interval = crossed(noise).interval(1 - 2 * LEVEL)
        redundant += -margin < interval.low and interval.high < margin
    return {"shown": shown / n_draws, "redundant": redundant / n_draws}
