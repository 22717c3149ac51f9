"""Uncertainty of scores: intervals of means and paired differences over videos, and over seeds.

Most functions take one value per video and treat the videos as a random draw of more videos of the
same kind. What another training seed would change is only in `crossed`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit
from scipy.stats import bootstrap

__all__ = [
    "Crossed",
    "Interval",
    "crossed",
    "mean_interval",
    "paired_difference",
]

Values: TypeAlias = Sequence[float] | NDArray[Any]


class Interval(NamedTuple):
    """A mean and the ends of its confidence interval, nan where it has none.

    Formatted with a number's format it reads ``"70.1 [68.0, 72.2]"``, or the mean alone.
    """

    mean: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        mean, low, high = (format(number, form) for number in self)
        return f"{mean} [{low}, {high}]" if math.isfinite(self.low) else mean

    def times(self, factor: float) -> "Interval":
        """In another unit."""
        return Interval(*(factor * number for number in self))


def mean_interval(
    values: Values, *, confidence: float = 0.95, n_resamples: int = 9999, seed: int = 0
) -> Interval:
    """Mean over videos with its bias-corrected and accelerated (BCa) bootstrap interval (Efron).

    Videos are drawn with replacement. Equal numbers of values and equal seeds draw the same videos,
    so the intervals of all metrics and models of a table rest on the same draws.

    Args:
        values: One value per video (n,), finite.
        confidence: Coverage aimed at, between 0 and 1.
        n_resamples: Draws of n videos; memory is 8 n n_resamples bytes.
        seed: Of the draws.

    Returns:
        The interval. Both ends are nan for a single value, which tells nothing of the spread, and
        equal the mean for values that are all the same.

    Raises:
        ValueError: No values, nan (a skipped video) or infinity among them, more than one axis, a
            confidence outside 0 to 1 or no resamples.
    """
    array = _checked(values, "values")
    _check_confidence(confidence)
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, got {n_resamples}; usual is 9999")
    if len(array) == 1:
        return Interval(float(array[0]), math.nan, math.nan)
    if np.ptp(array) == 0:
        return Interval(*[float(array[0])] * 3)

    found = bootstrap(
        (array,),
        np.mean,
        method="BCa",
        confidence_level=confidence,
        n_resamples=n_resamples,
        rng=np.random.default_rng(seed),
        vectorized=True,
    ).confidence_interval
    return Interval(float(array.mean()), float(found.low), float(found.high))


def paired_difference(a: Values, b: Values) -> Interval:
    """Mean of ``a - b`` over the videos, with the interval of `mean_interval`.

    Two models scored on the same videos share what is hard about each; their difference per video
    is free of it, so its interval is narrower than a look at the two single ones suggests.

    Args:
        a: One value per video (n,).
        b: The other model's values of the same videos, in the same order.

    Raises:
        ValueError: Unequal numbers of values, and what `mean_interval` raises.
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if len(first) != len(second):
        raise ValueError(
            f"a has {len(first)} values and b {len(second)}: pass one per video, the same videos "
            "in the same order"
        )
    return mean_interval(first - second)


@dataclass(frozen=True)
class Crossed:
    """A mean over seeds and videos that are both a random draw.

    Attributes:
        mean: Over all values.
        error: Its standard error.
        freedom: Satterthwaite's degrees of freedom of the error.
        seeds: Variance that seeds add to a value, estimated; at least 0.
        videos: Variance that videos add.
        rest: Variance of what is left.
    """

    mean: float
    error: float
    freedom: float
    seeds: float
    videos: float
    rest: float

    def interval(self, confidence: float = 0.95) -> Interval:
        """For other seeds and other videos, from Student's t."""
        _check_confidence(confidence)
        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * self.error if self.error else 0
        return Interval(self.mean, self.mean - half, self.mean + half)

    @property
    def p_value(self) -> float:
        """Two-sided, of a mean of zero."""
        if not self.error:
            return float(self.mean == 0)
        return float(2 * stdtr(self.freedom, -abs(self.mean) / self.error))


def crossed(values: Sequence[Sequence[float]] | NDArray[Any]) -> Crossed:
    """Mean over seeds and videos, and how sure it is for other seeds and other videos.

    Every seed was scored on every video, and both are a random draw: two crossed random effects
    whose mean squares give the variance of the mean, with Satterthwaite's degrees of freedom for
    Student's t. With few seeds the interval is wide: that is what few seeds can tell.

    Args:
        values: A row for each seed, a value per video in it (m,n), at least 2 of each.

    Raises:
        ValueError: Another shape, nan or infinity.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or min(array.shape) < 2 or not np.isfinite(array).all():
        raise ValueError(
            "values must be finite and (seeds, videos) with 2 or more of each, "
            f"got shape {array.shape}"
        )
    m, n = array.shape
    mean = array.mean()
    of_seeds, of_videos = array.mean(1, keepdims=True) - mean, array.mean(0) - mean
    rest = array - mean - of_seeds - of_videos
    squares = np.array([n * (of_seeds**2).sum(), m * (of_videos**2).sum(), (rest**2).sum()])
    freedom = np.array([m - 1, n - 1, (m - 1) * (n - 1)])
    own = squares / freedom
    variance = max(own[0] + own[1] - own[2], own[0], own[1])  # an estimate can fall below its parts
    shared = (own**2 / freedom).sum()
    return Crossed(
        mean=float(mean),
        error=math.sqrt(variance / (m * n)),
        freedom=float(variance**2 / shared) if shared else math.inf,
        seeds=float(max(own[0] - own[2], 0) / n),
        videos=float(max(own[1] - own[2], 0) / m),
        rest=float(own[2]),
    )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}; usual is 0.95")


def _checked(values: Values, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"{name} must be one number per video (n,), got shape {array.shape}")
    if np.isnan(array).any():
        raise ValueError(
            f"{np.isnan(array).sum()} of {len(array)} {name} are nan: drop skipped videos first, "
            "from both models if two are compared"
        )
    if np.isinf(array).any():
        raise ValueError(f"{np.isinf(array).sum()} of {len(array)} {name} are infinite")
    return array
