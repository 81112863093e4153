"""Intervals that cover both the training seed and the choice of test items.

Every seed is measured on the same items, so a figure is a matrix of seeds by items: the two are crossed. The bootstrap
resamples the seeds' means (each over all items) and the items' means (each over all seeds), independently and with
replacement. The figure of a resample is mean of the drawn seeds + mean of the drawn items - mean of all.
``scipy.stats.bootstrap`` has no crossed design.

The deviations of the seeds are first stretched by sqrt(S / (S - 1)), because draws from three seeds vary by a third
less than three new seeds would. The noise of single answers counts twice, so the interval is somewhat too wide where
seeds hardly differ. Where seeds differ much, three seeds cannot tell how much, and it is somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy

RESAMPLES = 10_000


class Estimate(NamedTuple):
    """A mean with its standard error and 95 % interval."""

    mean: float
    se: float
    low: float
    high: float


def estimate(values: numpy.ndarray, seed: int = 0, clusters: Sequence[int] | None = None) -> Estimate:
    """The mean of ``values``, an (S, N) matrix of seeds by items. With one seed, the interval covers the items only.

    Args:
        clusters: (N,), the cluster of each item, such as the article that a question is about. Items of one cluster are
            drawn together.

    Raises:
        ValueError: ``values`` is not a matrix, or is empty, or has other items than ``clusters``.
    """
    values = numpy.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected seeds by items, found a shape of {values.shape}")
    rng = numpy.random.default_rng(seed)
    mean, seeds = values.mean(), len(values)
    if clusters is not None and len(clusters) != values.shape[1]:
        raise ValueError(f"{values.shape[1]} items, but the clusters of {len(clusters)}")
    by_item = resampled(rng, values.mean(0) - mean, clusters)
    by_seed = resampled(rng, (values.mean(1) - mean) * (seeds / (seeds - 1)) ** 0.5) if seeds > 1 else 0.0
    means = mean + by_item + by_seed
    low, high = numpy.percentile(means, [2.5, 97.5])
    return Estimate(float(mean), float(means.std()), float(low), float(high))


def resampled(
    rng: numpy.random.Generator, values: numpy.ndarray, clusters: Sequence[int] | None = None
) -> numpy.ndarray:
    """(RESAMPLES,): the mean of each resample of ``values``, in which whole clusters are drawn."""
    if clusters is None:
        clusters = range(len(values))
    _, number = numpy.unique(clusters, return_inverse=True)
    sums, sizes = numpy.bincount(number, values), numpy.bincount(number)
    count = len(sums)
    drawn = rng.multinomial(count, numpy.full(count, 1 / count), size=RESAMPLES)  # how often each is drawn
    means: numpy.ndarray = drawn @ sums / (drawn @ sizes)
    return means
