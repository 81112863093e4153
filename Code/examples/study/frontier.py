"""What is kept at the same task score: the least drift that a sweep reaches at a share of plain LoRA's exact match.

A sweep's arms are joined by straight lines in the plane of score and drift, as a practitioner would who tries a value
between two others. The least drift at a score is that of the best point on the lines that learned at least as much.
Every figure is computed anew in each resample of seeds and items, with the same resamples for all sweeps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from experiments import LORA, RATES, SWEEPS, Sweep
from resampling import RESAMPLES, described, means

SHARES = (0.8, 0.9, 1.0)  # of plain LoRA's exact match
Curve = tuple[numpy.ndarray, numpy.ndarray]  # (P, 1 + R) each: scores and drifts of P arms; first the real ones


def summarise(by_arm: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """By the title of each sweep: its arms, and by share of LoRA's score the least drift and the difference from the
    least drift of LoRA's learning rates, as estimates. Sweeps with fewer than two arms that have LoRA's seeds, and at
    least two seeds, are left out.

    Args:
        by_arm: {arm: {seed: record}}.
    """
    seeds = sorted(by_arm.get(LORA, {}))
    if len(seeds) < 2:
        return {}
    arms = {sweep: [name for name in sweep.arms if set(seeds) <= set(by_arm.get(name, {}))] for sweep in SWEEPS}
    arms = {sweep: names for sweep, names in arms.items() if len(names) > 1}
    points = {name: resampled([by_arm[name][seed] for seed in seeds]) for names in arms.values() for name in names}
    curves = {sweep: curve([points[name] for name in names]) for sweep, names in arms.items()}
    return {sweep.title: {"arms": arms[sweep], "at": at_shares(sweep, curves, points[LORA][0])} for sweep in curves}


def at_shares(sweep: Sweep, curves: Mapping[Sweep, Curve], lora: numpy.ndarray) -> dict[str, Any]:
    found = {}
    for share in SHARES:
        least = least_drift(*curves[sweep], share * lora)
        found[f"{share:g}"] = {"kl": rounded(least)}
        if sweep != RATES and RATES in curves:
            plain = least_drift(*curves[RATES], share * lora)
            found[f"{share:g}"]["difference"] = rounded(least - plain)
    return found


def resampled(runs: Sequence[Mapping[str, Any]]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(1 + R,) each: an arm's exact match and KL, as measured and then in each resample."""
    both = []
    for part, column in (("task", "exact_match"), ("general", "kl")):
        values = numpy.array([run[part][column] for run in runs], dtype=float)
        clusters = runs[0][part].get("cluster")
        drawn = means(values, numpy.random.default_rng(0), numpy.random.default_rng(1), clusters)
        both.append(numpy.concatenate([[values.mean()], drawn]))
    return both[0], both[1]


def curve(points: Sequence[tuple[numpy.ndarray, numpy.ndarray]]) -> Curve:
    scores, drifts = zip(*points)
    return numpy.stack(scores), numpy.stack(drifts)


def least_drift(scores: numpy.ndarray, drifts: numpy.ndarray, level: numpy.ndarray) -> numpy.ndarray:
    """(R,): the least drift on the broken line through P points where the score is at least ``level``; infinite where
    the line does not get there.

    Args:
        scores, drifts: (P, R), the points in the order of the line.
        level: (R,).
    """
    reached = numpy.where(scores >= level, drifts, math.inf)
    before, after = scores[:-1], scores[1:]
    crosses = (before < level) != (after < level)
    at = (level - before) / numpy.where(crosses, after - before, 1)
    crossing = numpy.where(crosses, drifts[:-1] + at * (drifts[1:] - drifts[:-1]), math.inf)
    least: numpy.ndarray = numpy.concatenate([reached, crossing]).min(0)
    return least


def rounded(figures: numpy.ndarray) -> dict[str, float | None]:
    """An estimate of (1 + RESAMPLES,) figures, the first the real one. None stands for a score that is not reached."""
    assert len(figures) == 1 + RESAMPLES
    whole = described(figures[0], figures[1:])._asdict()
    return {name: round(figure, 5) if math.isfinite(figure) else None for name, figure in whole.items()}
