"""Standard errors and paired bootstrap intervals, with the standard library alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import sqrt
from statistics import fmean, pstdev
from typing import NamedTuple

RESAMPLES = 10_000


class Interval(NamedTuple):
    """A mean and the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean: s / sqrt(n), with the sample's s (n - 1 below the line). 0 for a single value."""
    if len(values) < 2:
        return 0.0
    return pstdev(values) / sqrt(len(values) - 1)


def paired_difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """Mean of ``ours[i] - theirs[i]`` with its 95 % percentile interval.

    Both were measured on the same items, so items are resampled, not values: what makes an item hard or easy for both
    cancels out.

    Raises:
        ValueError: the two differ in length, or are empty.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"not paired: {len(ours)} values against {len(theirs)}")
    return mean_interval([a - b for a, b in zip(ours, theirs)], seed)


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of ``values`` with its 95 % percentile interval over ``RESAMPLES`` resamples with replacement."""
    if not values:
        raise ValueError("no values to resample")
    rng = random.Random(seed)
    means = sorted(fmean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return Interval(fmean(values), means[round(0.025 * RESAMPLES)], means[round(0.975 * RESAMPLES) - 1])
