from __future__ import annotations

import numpy
import pytest
from resampling import estimate

RNG = numpy.random.default_rng(3)


def test_with_one_seed_the_interval_is_that_of_the_items():
    values = RNG.normal(0.4, 0.2, (1, 200))
    found = estimate(values)
    error = values.std() / 200**0.5
    assert found.mean == pytest.approx(values.mean())
    assert found.se == pytest.approx(error, rel=0.03)
    assert (found.low, found.high) == pytest.approx((found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.003)


def test_seeds_count_with_the_standard_error_of_a_sample():
    found = estimate(numpy.array([[0.0] * 50, [1.0] * 50, [2.0] * 50]))
    assert found.mean == 1
    assert found.se == pytest.approx(1 / 3**0.5, rel=0.03)  # s = 1 with n - 1 below the line


def test_what_makes_an_item_hard_for_every_seed_does_not_average_out_over_seeds():
    items = RNG.normal(0, 1, (1, 100))
    assert estimate(items.repeat(3, axis=0)).se == pytest.approx(estimate(items).se, rel=0.03)


def test_the_variances_of_seeds_and_items_add_up():
    values = RNG.normal(0, 0.1, (3, 1)) + RNG.normal(0, 1, (1, 100))
    expected = values.mean(1).var(ddof=1) / 3 + values.mean(0).var() / 100
    assert estimate(values).se ** 2 == pytest.approx(expected, rel=0.06)


def test_the_same_values_have_the_same_interval():
    values = RNG.normal(0, 1, (3, 20))
    assert estimate(values) == estimate(values)


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [[]]])
def test_anything_but_seeds_by_items_is_refused(values):
    with pytest.raises(ValueError, match="seeds by items"):
        estimate(values)


def test_items_of_one_cluster_are_drawn_together():
    clusters = [number for number in range(25) for _ in range(8)]
    same = RNG.normal(0, 1, (1, 25)).repeat(8, axis=1)  # every item of a cluster has the same value
    found = estimate(same, clusters=clusters)
    assert found.se == pytest.approx(same.std() / 25**0.5, rel=0.03)
    assert found.se > 2.5 * estimate(same).se
    alone = RNG.normal(0, 1, (2, 60))
    assert estimate(alone, clusters=list(range(60))) == estimate(alone)


def test_large_clusters_weigh_more():
    values = numpy.array([[1.0] * 90 + [0.0] * 10])
    found = estimate(values, clusters=[0] * 90 + [1] * 10)
    assert (found.mean, found.low, found.high) == pytest.approx((0.9, 0.0, 1.0))


def test_clusters_of_other_items_are_refused():
    with pytest.raises(ValueError, match="3 items, but the clusters of 2"):
        estimate(numpy.ones((1, 3)), clusters=[0, 1])
