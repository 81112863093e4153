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

import math
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
    rng = numpy.random.default_rng(seed)
    drawn = means(values, rng, rng, clusters)
    return described(numpy.mean(values), drawn)


def described(mean: float, of_resamples: numpy.ndarray) -> Estimate:
    """The estimate whose figure is ``mean`` and whose resamples have the figures ``of_resamples``. Infinite ones may
    make a bound infinite; the standard error is that of the finite ones."""
    finite = of_resamples[numpy.isfinite(of_resamples)]
    complete = len(finite) == len(of_resamples)  # otherwise no figure between two can be computed
    low, high = numpy.percentile(of_resamples, [2.5, 97.5], method="linear" if complete else "inverted_cdf")
    return Estimate(float(mean), float(finite.std()) if len(finite) else math.inf, float(low), float(high))


def means(
    values: numpy.ndarray,
    items: numpy.random.Generator,
    seeds: numpy.random.Generator,
    clusters: Sequence[int] | None = None,
) -> numpy.ndarray:
    """(RESAMPLES,): the mean of each resample of ``values``. Matrices of one shape whose generators are in the same
    state are resampled alike, so that a figure may be made of several arms.

    Raises:
        ValueError: as ``estimate`` does.
    """
    values = numpy.asarray(values, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected seeds by items, found a shape of {values.shape}")
    mean, count = values.mean(), len(values)
    if clusters is not None and len(clusters) != values.shape[1]:
        raise ValueError(f"{values.shape[1]} items, but the clusters of {len(clusters)}")
    by_item = resampled(items, values.mean(0) - mean, clusters)
    by_seed = resampled(seeds, (values.mean(1) - mean) * (count / (count - 1)) ** 0.5) if count > 1 else 0.0
    whole: numpy.ndarray = mean + by_item + by_seed
    return whole


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
