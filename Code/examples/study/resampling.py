"""Intervals that cover both the training seed and the choice of test items.

Every seed is measured on the same items, so a figure is a matrix, seeds by items, and the two are crossed, not nested.
The bootstrap resamples both ways: the seeds' means (each over all items) and the items' means (each over all seeds),
each with replacement and independently; a resample's figure is mean of drawn seeds + mean of drawn items - mean of all.
The seeds' deviations are stretched by sqrt(S / (S - 1)) first: drawn from three seeds, they vary by a third less than
three new seeds would. The noise of single answers counts in both ways, so the interval is somewhat too wide where seeds
hardly differ; where they differ much, three of them are too few to know by how much, and it is somewhat too narrow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean with its standard error and 95 % interval."""

    mean: float
    se: float
    low: float
    high: float


def estimate(values: numpy.ndarray, seed: int = 0) -> Estimate:
    """Mean of ``values``, (S, N) seeds by items. With one seed the interval covers items only.

    Raises:
        ValueError: not a matrix, or empty.
    """
    values = numpy.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected seeds by items, found a shape of {values.shape}")
    rng = numpy.random.default_rng(seed)
    mean, seeds = values.mean(), len(values)
    by_item = resampled(rng, values.mean(0) - mean)
    by_seed = resampled(rng, (values.mean(1) - mean) * (seeds / (seeds - 1)) ** 0.5) if seeds > 1 else 0.0
    means = mean + by_item + by_seed
    low, high = numpy.percentile(means, [2.5, 97.5])
    return Estimate(float(mean), float(means.std()), float(low), float(high))


def resampled(rng: numpy.random.Generator, values: numpy.ndarray) -> numpy.ndarray:
    """(RESAMPLES,): means of as many draws from ``values`` as there are values."""
    count = len(values)
    drawn = rng.multinomial(count, numpy.full(count, 1 / count), size=RESAMPLES)  # how often each is drawn
    return drawn @ values / count
