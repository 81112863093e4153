"""A picture of a training run and its figures in three lines, from what the Trainer logged."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from . import plots, training_log
from .training_log import Row

NAMES = ("loss", "selfaug/nll", "selfaug/kl", "selfaug/mse", "selfaug/alpha")


def picture(run: Path) -> list[str]:
    """Draw ``history.png`` into the folder of a run, and give a summary in lines.

    Raises:
        Refusal: the folder has no log of a training, or the log cannot be read.
        ImportError: matplotlib is not installed.
    """
    path, rows = training_log.read(run)
    plots.history(rows, run / "history.png")
    lines = [f"first {_shown(rows[0])}", f"last  {_shown(rows[-1])}", f"mean of each epoch: {_epochs(rows)}"]
    if not any({"selfaug/kl", "selfaug/mse"} & set(row) for row in rows):
        lines.append("The log has no selfaug/kl: the run trained without SelfAug, or never logged a step with it.")
    return [*lines, f"{path} -> {run / 'history.png'}"]


def _shown(row: Row) -> str:
    return f"(step {row['step']}): {_figures(row)}"


def _epochs(rows: list[Row]) -> str:
    """The means of the logged rows of each epoch; the Trainer counts a row at the end of an epoch to that epoch."""
    if not all(isinstance(row.get("epoch"), (int, float)) for row in rows):
        return "not known, the log does not count epochs"
    epochs: dict[int, list[Row]] = {}
    for row in rows:
        epochs.setdefault(max(1, -int(-row["epoch"] // 1)), []).append(row)
    return "; ".join(f"{number}: {_figures(_mean(each))}" for number, each in epochs.items())


def _mean(rows: list[Row]) -> dict[str, Any]:
    values = {name: [row[name] for row in rows if isinstance(row.get(name), (int, float))] for name in NAMES}
    return {name: fmean(each) for name, each in values.items() if each}


def _figures(row: Row) -> str:
    return ", ".join(f"{name.removeprefix('selfaug/')} {row[name]:.4g}" for name in NAMES if name in row)
