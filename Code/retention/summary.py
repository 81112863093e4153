"""Means with standard errors, and paired differences with intervals, from the figures of single items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp
from statistics import fmean, median
from typing import Any

from .bootstrap import bounds, paired_difference, proportion, ratio_error, resampled, standard_error
from .items import GENERAL, PROBES, TASK, Items
from .probes import METRICS
from .prompts import Prompt

BASE = "base"
LEARNED = ("exact_match", "contains", "f1", "answerable", "unanswerable")
# metric -> its column in the rows of a model
DRIFT = {"kl": "kl", "reverse_kl": "reverse_kl", "top1": "top1"}
SHAPE = {"answer_length": "length", "ended": "ended", "lists": "list", "one_word": "one_word"}
INPUT = {"input_kl": "input_kl", "input_top1": "input_top1"}
KEPT = ("kl", "reverse_kl", "top1", "perplexity", *INPUT, *SHAPE)
PROBED = tuple(metric for metrics in METRICS.values() for metric in metrics)
Columns = dict[str, list[float]]


def summarise(models: Mapping[str, Items], task: Sequence[Prompt]) -> dict[str, Any]:
    """``models``: the mean and the standard error of each metric; for lengths, the median, too. ``differences``: for
    each adapter but the first, the mean paired difference to the first adapter with its 95 % interval.

    Args:
        models: items of the base model under ``base``, and items of the adapters by their names.
    """
    columns = {name: _columns(items, task, name != BASE) for name, items in models.items()}
    weighted = {name: _likelihoods(items) for name, items in models.items()}
    first, *others = [name for name in models if name != BASE]
    return {
        "models": {name: _figures(columns[name], weighted[name]) for name in models},
        "differences": {
            name: {
                metric: _difference(columns[name][metric], columns[first][metric])
                for metric in columns[name]
                if columns[name][metric] and metric in columns[first]
            }
            | _perplexity_difference(weighted[name], weighted[first])
            for name in others
        },
    }


def _columns(items: Items, task: Sequence[Prompt], tuned: bool) -> Columns:
    general, questions = items.rows[GENERAL], items.rows[TASK]
    columns = {metric: [float(row[name]) for row in general] for metric, name in SHAPE.items()}
    if tuned:
        columns.update({metric: [row[name] for row in general] for metric, name in DRIFT.items()})
    for metric in PROBED:
        figures = [row["figures"] for row in items.rows[PROBES]]
        columns[metric] = [one[metric] for one in figures if metric in one]
    if questions:
        columns.update({metric: [row[metric] for row in questions] for metric in ("exact_match", "contains", "f1")})
        columns["answerable"] = _exact(questions, task, True)
        columns["unanswerable"] = _exact(questions, task, False)
        shifted = [row for row in questions if "input_kl" in row]
        columns.update({metric: [row[name] for row in shifted] for metric, name in INPUT.items() if shifted})
    return columns


def _exact(rows: Sequence[Mapping[str, Any]], task: Sequence[Prompt], answerable: bool) -> list[float]:
    return [row["exact_match"] for row, prompt in zip(rows, task) if prompt.answerable is answerable]


def _likelihoods(items: Items) -> tuple[list[float], list[float]]:
    """(negative log-likelihood per token, number of tokens) of the base model's answers, a list each."""
    rows = items.rows[GENERAL]
    return [row["nll"] for row in rows], [float(row["tokens"]) for row in rows]


def _figures(columns: Columns, weighted: tuple[list[float], list[float]]) -> dict[str, dict[str, float]]:
    figures = {
        metric: {"mean": fmean(values), "se": standard_error(values)} for metric, values in columns.items() if values
    }
    for metric in set(PROBED) & figures.keys():
        interval = proportion(columns[metric])
        figures[metric].update(low=interval.low, high=interval.high, items=len(columns[metric]))
    figures["answer_length"]["median"] = median(columns["answer_length"])
    nll, tokens = weighted
    perplexity = exp(sum(n * t for n, t in zip(nll, tokens)) / sum(tokens))
    figures["perplexity"] = {"mean": perplexity, "se": perplexity * ratio_error(nll, tokens)}
    return figures


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """The mean difference, its interval, its standard error, and on how many of the items ours is lower."""
    lower = sum(a < b for a, b in zip(ours, theirs))
    error = standard_error([a - b for a, b in zip(ours, theirs)])
    return {**paired_difference(ours, theirs)._asdict(), "se": error, "lower": lower, "items": len(ours)}


def _perplexity_difference(
    ours: tuple[list[float], list[float]], theirs: tuple[list[float], list[float]]
) -> dict[str, dict[str, float]]:
    import numpy

    tokens = theirs[1]
    sums = [[nll * weight for nll, weight in zip(values, tokens)] for values in (ours[0], theirs[0])]
    drawn = resampled([*sums, tokens])
    means = numpy.exp(drawn[:, 0] / drawn[:, 2]) - numpy.exp(drawn[:, 1] / drawn[:, 2])
    mean = exp(sum(sums[0]) / sum(tokens)) - exp(sum(sums[1]) / sum(tokens))
    return {"perplexity": bounds(mean, means)._asdict()}
