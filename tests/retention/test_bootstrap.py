from __future__ import annotations

import random

import pytest

from selfaug.retention.bootstrap import (
    Interval,
    bounds,
    mean_interval,
    paired_difference,
    ratio_error,
    resampled,
    standard_error,
)


def test_standard_error_of_two_values_is_half_their_distance():
    assert standard_error([1.0, 5.0]) == pytest.approx(2.0)


def test_standard_error_of_a_score_of_three_in_four():
    # sample variance 0.25, so s / sqrt(n) = 0.5 / 2
    assert standard_error([1, 1, 1, 0]) == pytest.approx(0.25)


def test_standard_error_of_a_single_value_is_zero():
    assert standard_error([0.3]) == 0.0


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([0.25] * 7) == Interval(0.25, 0.25, 0.25)


def test_a_constant_difference_between_scattered_values_is_certain():
    """What makes an item hard for both must cancel out."""
    rng = random.Random(0)
    theirs = [rng.uniform(0, 100) for _ in range(40)]
    interval = paired_difference([value - 2 for value in theirs], theirs)
    assert interval == pytest.approx((-2, -2, -2))
    assert interval.excludes_zero()


def test_the_interval_agrees_with_the_normal_one_on_many_values():
    rng = random.Random(1)
    values = [rng.gauss(3, 2) for _ in range(400)]
    interval = mean_interval(values)
    half = 1.96 * standard_error(values)
    assert interval.low == pytest.approx(interval.mean - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.1 * half)


def test_the_bounds_of_two_values_are_those_values():
    assert mean_interval([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)


def test_an_interval_with_zero_inside_does_not_exclude_it():
    assert not Interval(0.1, -0.1, 0.3).excludes_zero()
    assert Interval(-0.2, -0.3, -0.1).excludes_zero()


def test_the_same_seed_gives_the_same_interval():
    values = [0.1, 0.5, 0.2, 0.9]
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], [])])
def test_lists_that_are_not_paired_or_empty_are_refused(ours, theirs):
    with pytest.raises(ValueError, match=r"not paired|no values"):
        paired_difference(ours, theirs)


def test_a_ratio_of_equal_weights_has_the_standard_error_of_the_mean():
    assert ratio_error([1, 1, 1, 0], [7, 7, 7, 7]) == pytest.approx(standard_error([1, 1, 1, 0]))


def test_the_error_of_a_weighted_mean_agrees_with_the_spread_of_its_resamples():
    rng = random.Random(2)
    weights = [rng.randint(1, 60) for _ in range(300)]
    values = [rng.gauss(1, 0.3) + 0.01 * weight for weight in weights]
    sums = resampled([[v * w for v, w in zip(values, weights)], weights])
    found = bounds(0.0, sums[:, 0] / sums[:, 1])
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(ratio_error(values, weights), rel=0.05)


def test_columns_are_resampled_together():
    sums = resampled([[1.0, 2.0, 5.0], [3.0, 4.0, 7.0]])
    assert sums[:, 1] - sums[:, 0] == pytest.approx(6.0)
