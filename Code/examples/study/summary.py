"""One summary of the records of all runs: means of each arm with intervals, and differences to plain LoRA, to
SelfAug's default, and to the same training without SelfAug.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, Optional

import frontier
import numpy
from experiments import BASE, DEFAULT, LORA, ROWS, SAME, TITLES, without_selfaug
from resampling import estimate

Reader = Callable[[dict[str, Any]], Optional[list[Any]]]  # the values of a metric in a record; None: it has none
METRICS = {
    "exact_match": ("task", "exact_match"),
    "contains": ("task", "contains"),
    "f1": ("task", "f1"),
    "kl": ("general", "kl"),
    "reverse_kl": ("general", "reverse_kl"),
    "top1": ("general", "top1"),
    "length": ("general", "length"),
    "ended": ("general", "ended"),
    "one_word": ("general", "one_word"),
    "input_kl": ("task", "input_kl"),
    "code": ("code", "passed"),
    "code_length": ("code", "length"),
}
AMONG = {"answerable": 1, "unanswerable": 0}  # exact match among these questions
OF_BASE = {"kl": 0.0, "reverse_kl": 0.0, "top1": 1.0, "input_kl": 0.0}  # by definition
SPENT = ("steps", "cpu_seconds", "cpu_per_step", "peak_mb", "dialogues_cpu_seconds")


def summarise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that the tables and plots show."""
    if not records:
        raise ValueError("no runs")
    by_arm = {name: {r["seed"]: r for r in records if r["arm"] == name} for name in ROWS}
    return {
        "setting": records[0]["setting"],
        "versions": {name: ", ".join(all_of(records, name)) for name in records[0]["versions"]},
        "runs": len(records),
        "arms": {name: row(name, by_arm) for name, runs in by_arm.items() if runs},
        "sweeps": frontier.summarise(by_arm),
    }


def all_of(records: Sequence[dict[str, Any]], package: str) -> list[str]:
    """The versions of a package with which the runs were made."""
    return sorted({record["versions"][package] for record in records if package in record["versions"]})


def row(name: str, by_arm: dict[str, Any]) -> dict[str, Any]:
    runs, stock = by_arm[name], without_selfaug(name)
    whole = {name: matrix(list(runs.values()), read) for name, read in readers().items()}
    return {
        "title": TITLES[name],
        "seeds": [] if name == BASE else sorted(runs),
        "estimates": {
            metric: described(m, clusters(next(iter(runs.values())), metric))
            for metric, m in whole.items()
            if m is not None
        },
        "differences": {
            **{other: difference(name, other, by_arm) for other in (LORA, DEFAULT)},
            SAME: {} if stock in ("", LORA) else difference(name, stock, by_arm),  # those to LoRA are there already
        },
        "spent": {key: spent(runs, key) for key in SPENT if spent(runs, key) is not None},
    }


def difference(name: str, other: str, by_arm: dict[str, Any]) -> dict[str, Any]:
    """The differences in each metric, on the seeds that both arms have. Empty for an arm and itself."""
    runs, others = by_arm[name], by_arm[other]
    seeds = sorted(others) if name == BASE else sorted(set(runs) & set(others))  # the base is the same for every seed
    ours = dict.fromkeys(seeds, runs[None]) if name == BASE else runs
    differences = {}
    for metric, read in readers().items():
        pair = matrix([ours[seed] for seed in seeds], read), matrix([others[seed] for seed in seeds], read)
        if name != other and pair[0] is not None and pair[1] is not None:
            differences[metric] = described(pair[0] - pair[1], clusters(others[seeds[0]], metric))
    return differences


def readers() -> dict[str, Reader]:
    """For each metric, a function that reads its values from a record, or returns None if the record has none."""

    def of(part: str, column: str, metric: str) -> Reader:
        def read(record: dict[str, Any]) -> list[Any] | None:
            values: list[Any] | None = record.get(part, {}).get(column)
            if values is None and record["arm"] == BASE and metric in OF_BASE:
                return [OF_BASE[metric]]  # the same for every item
            return values

        return read

    def among(answerable: int) -> Reader:
        def read(record: dict[str, Any]) -> list[Any] | None:
            task = record["task"]
            pairs = zip(task.get("answerable", []), task["exact_match"])
            return [value for flag, value in pairs if flag == answerable] or None

        return read

    by_metric = {metric: of(part, column, metric) for metric, (part, column) in METRICS.items()}
    return {**by_metric, **{metric: among(flag) for metric, flag in AMONG.items()}}


def clusters(record: dict[str, Any], metric: str) -> list[int] | None:
    """The cluster of each value of a metric of the task. None if the questions have no clusters."""
    task = record["task"]
    whole: list[int] | None = task.get("cluster")
    if whole is None or metric not in ("exact_match", "contains", "f1", *AMONG):
        return None
    return [one for one, flag in zip(whole, task["answerable"]) if flag == AMONG[metric]] if metric in AMONG else whole


def matrix(records: Sequence[dict[str, Any]], read: Reader) -> numpy.ndarray | None:
    """(S, N) float64, seeds by items. None if there are no records, or if a record has no values."""
    rows = [read(record) for record in records]
    return numpy.array(rows, dtype=float) if rows and None not in rows else None


def described(values: numpy.ndarray, clusters: Sequence[int] | None = None) -> dict[str, Any]:
    """Mean, standard error, interval, and the means of the single seeds."""
    whole = {name: round(figure, 5) for name, figure in estimate(values, clusters=clusters)._asdict().items()}
    return {**whole, "by_seed": [round(float(mean), 4) for mean in values.mean(1)]}


def spent(runs: dict[str, Any], key: str) -> float | None:
    values = [run["training"][key] for run in runs.values() if key in run["training"]]
    return fmean(values) if values else None
