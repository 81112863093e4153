"""What is kept at the same task score, against figures that were computed by hand."""

from __future__ import annotations

import frontier
import numpy
import pytest
import summary
import tables
from frontier import least_drift
from resampling import estimate, means

INF = numpy.inf


def least(points, level):
    scores, drifts = numpy.array(points, dtype=float).T[:, :, None]
    return least_drift(scores, drifts, numpy.array([level]))[0]


def test_the_least_drift_at_a_score_lies_on_the_line_between_two_arms():
    line = [(0.4, 0.2), (0.6, 1.0)]
    assert least(line, 0.5) == pytest.approx(0.6)
    assert least(line, 0.45) == pytest.approx(0.4)
    assert least(line, 0.6) == 1.0
    assert least(line[::-1], 0.5) == pytest.approx(0.6), "the order of the line does not matter"


def test_an_arm_that_learned_more_and_drifted_less_is_the_least():
    assert least([(0.4, 0.2), (0.6, 0.1), (0.5, 0.8)], 0.45) == 0.1


def test_a_score_below_all_arms_has_the_drift_of_the_best_arm_and_one_above_all_is_not_reached():
    line = [(0.4, 0.2), (0.6, 1.0)]
    assert least(line, 0.1) == 0.2
    assert least(line, 0.61) == INF


def test_two_arms_of_one_score_are_no_crossing():
    with numpy.errstate(all="raise"):
        assert least([(0.5, 0.3), (0.5, 0.2)], 0.5) == 0.2
        assert least([(0.5, 0.3), (0.5, 0.2)], 0.6) == INF


def test_each_resample_has_its_own_line():
    scores, drifts = numpy.array([[0.4, 0.0], [0.6, 0.2]]), numpy.array([[0.2, 0.5], [1.0, 0.9]])
    assert least_drift(scores, drifts, numpy.array([0.5, 0.1])) == pytest.approx([0.6, 0.7])


@pytest.fixture
def found(record):
    seeds = (0, 1, 2)
    return [
        record("base", None, kl=0.0, exact_match=(0, 0, 0, 0, 0)),
        *(record("lora", seed, kl=0.9, exact_match=(1, 1, 1, 1, 0)) for seed in seeds),
        *(record("lower-lr", seed, kl=0.3, exact_match=(1, 1, 0, 0, 0)) for seed in seeds),
        *(record("selfaug-0.5", seed, kl=0.2, exact_match=(1, 1, 1, 1, 0)) for seed in seeds),
        *(record("selfaug-lower-lr", seed, kl=0.1, exact_match=(1, 1, 0, 0, 0)) for seed in seeds[:2]),
        *(record("selfaug-1.0", seed, kl=0.1, exact_match=(1, 1, 1, 1, 0)) for seed in seeds),
    ]


def test_a_sweep_is_made_of_the_arms_that_have_the_seeds_of_lora(found):
    sweeps = summary.summarise(found)["sweeps"]
    assert {title: sweep["arms"] for title, sweep in sweeps.items()} == {
        "LoRA, learning rate": ["lower-lr", "lora"],
        "SelfAug, alpha": ["selfaug-1.0", "selfaug-0.5", "lora"],
    }


def test_the_figures_are_those_of_the_lines_and_the_difference_is_that_of_the_means(found):
    sweeps = summary.summarise(found)["sweeps"]
    lora, alpha = (sweeps[title]["at"] for title in ("LoRA, learning rate", "SelfAug, alpha"))
    assert [lora[share]["kl"]["mean"] for share in ("0.8", "0.9", "1")] == pytest.approx([0.66, 0.78, 0.9])
    assert [alpha[share]["kl"]["mean"] for share in ("0.8", "0.9", "1")] == pytest.approx([0.1, 0.1, 0.1])
    assert "difference" not in lora["0.9"]
    assert alpha["0.9"]["difference"]["mean"] == pytest.approx(-0.68)


def test_resamples_that_do_not_learn_enough_leave_a_bound_open(record):
    learned, other = (1, 1, 1, 1, 0), (1, 1, 1, 0, 1)  # the same score, on other questions
    found = [record("lora", seed, kl=0.9, exact_match=learned) for seed in (0, 1)]
    found += [record(arm, seed, kl=0.3, exact_match=other) for arm in ("sasft", "sasft-lower-lr") for seed in (0, 1)]
    whole = summary.summarise(found)
    at = whole["sweeps"]["SA-SFT, learning rate"]["at"]["1"]["kl"]
    assert (at["mean"], at["high"]) == (0.3, None)
    row = next(line for line in tables.sweeps(whole).splitlines() if line.startswith("| SA-SFT, learning rate"))
    assert "0.30 [0.2" in row
    assert ", -]" in row
    assert tables.range_of(dict.fromkeys(("mean", "low", "high")), "") == "-"


def test_one_seed_has_no_sweeps_and_its_page_no_such_table(found):
    whole = summary.summarise([one for one in found if one["seed"] in (None, 0)])
    assert whole["sweeps"] == {}
    assert "same task score" not in tables.block(whole, "results")
    assert "same task score" in tables.block(summary.summarise(found), "results")


def test_matrices_of_one_shape_are_resampled_alike():
    rng = numpy.random.default_rng(1)
    values = rng.normal(0, 1, (3, 20))
    drawn = [means(one, *map(numpy.random.default_rng, (0, 1))) for one in (values, 2 * values + 1)]
    assert drawn[1] == pytest.approx(2 * drawn[0] + 1)
    assert drawn[0].std() == pytest.approx(estimate(values).se, rel=0.03)
    assert len(drawn[0]) == frontier.RESAMPLES
