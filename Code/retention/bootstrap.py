"""Standard errors and paired bootstrap intervals.

This is not ``scipy.stats.bootstrap``, because that draws new resamples for each figure. Here all figures of the same
items share their resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import sqrt
from statistics import fmean, pstdev
from typing import Any, NamedTuple

RESAMPLES = 10_000
_BLOCK = 1000


class Interval(NamedTuple):
    """A mean with the bounds of its 95 % interval."""

    mean: float
    low: float
    high: float

    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean, s / sqrt(n), where s is the sample's standard deviation (divisor n - 1). 0 for a
    single value.
    """
    if len(values) < 2:
        return 0.0
    return pstdev(values) / sqrt(len(values) - 1)


def ratio_error(values: Sequence[float], weights: Sequence[float]) -> float:
    """Standard error of sum(values * weights) / sum(weights), where each randomly drawn item has a value and a weight.
    Linearisation: the standard error of the weighted residuals.
    """
    whole = sum(weights)
    mean = sum(v * w for v, w in zip(values, weights)) / whole
    return standard_error([(v - mean) * w * len(weights) / whole for v, w in zip(values, weights)])


def paired_difference(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """Mean of ``ours[i] - theirs[i]`` with its 95 % percentile interval.

    Both lists come from the same items. The bootstrap resamples the items, so the difficulty of an item cancels out.

    Raises:
        ValueError: the lists differ in length, or are empty.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"not paired: {len(ours)} values against {len(theirs)}")
    return mean_interval([a - b for a, b in zip(ours, theirs)], seed)


def proportion(values: Sequence[float]) -> Interval:
    """Share of ones among zeros and ones, with its 95 % interval by Wilson (1927), which has a width even where all
    values are the same.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a share of")
    n, share, z = len(values), fmean(values), 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Mean of ``values`` with its 95 % percentile interval over ``RESAMPLES`` resamples."""
    return bounds(fmean(values) if values else 0.0, resampled([values], seed)[:, 0] / max(1, len(values)))


def resampled(columns: Sequence[Sequence[float]], seed: int = 0) -> Any:
    """Sum of each column over each resample: (RESAMPLES, columns) float64. All columns use the same resamples.

    Raises:
        ValueError: a column is empty.
    """
    import numpy

    if not columns or not len(columns[0]):
        raise ValueError("no values to resample")
    values = numpy.asarray(columns, dtype=numpy.float64).T
    drawn = _drawn(len(values), seed)
    return numpy.concatenate([drawn[at : at + _BLOCK] @ values for at in range(0, RESAMPLES, _BLOCK)])


def bounds(mean: float, means: Any) -> Interval:
    """``mean`` with the 95 % percentile interval of the resampled means."""
    ordered = sorted(means.tolist())
    return Interval(mean, ordered[round(0.025 * len(ordered))], ordered[round(0.975 * len(ordered)) - 1])


@lru_cache(maxsize=4)
def _drawn(items: int, seed: int) -> Any:
    """How often each resample contains each item: (RESAMPLES, items), drawn once for all figures of these items."""
    import numpy

    rng = numpy.random.default_rng(seed)
    rows = [
        numpy.bincount(rng.integers(items, size=items), minlength=items).astype(numpy.uint16) for _ in range(RESAMPLES)
    ]
    return numpy.stack(rows)
