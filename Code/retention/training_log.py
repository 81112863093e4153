"""The log of an adapter's training: ``log_history`` of ``trainer_state.json``, if that file lies beside the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from ..toolkit.files import read_json

Row = dict[str, Any]


def logs(folder: Path) -> list[Row]:
    """``log_history`` in the adapter's folder; without one, that of the last checkpoint in the folder; else empty."""
    for path in _files(folder):
        try:
            return _rows(path)
        except (OSError, Refusal):
            continue
    return []


def read(run: Path) -> tuple[Path, list[Row]]:
    """(the file, its rows with a loss) of a run: ``trainer_state.json`` in its folder or in its last checkpoint.

    Raises:
        Refusal: there is no such folder, no such file, no row with a loss, or the file is not what the Trainer writes.
    """
    if not run.is_dir():
        raise Refusal("no-run", f"there is no folder {run}", "the output_dir of a training", do="check its name")
    path = next((path for path in _files(run) if path.is_file()), None)
    if path is None:
        raise Refusal(
            "no-log", f"{run} has no log of a training", "trainer_state.json, in it or in a checkpoint-* folder",
            do="save a checkpoint (save_strategy), or call trainer.save_state() after trainer.train()",
        )  # fmt: skip
    rows = [row for row in _rows(path) if isinstance(row.get("loss"), (int, float))]
    if not rows:
        do = "train with logging_steps smaller than the number of steps"
        raise Refusal("no-log", f"{path} has no step with a loss", "rows in log_history", "none", do)
    return path, rows


def _files(folder: Path) -> list[Path]:
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)
    return [place / "trainer_state.json" for place in (folder, *checkpoints)]


def _rows(path: Path) -> list[Row]:
    state = read_json(path)
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise Refusal("no-log", f"{path} is no log of the Trainer", "an object with a list log_history")
    return [row for row in history if isinstance(row, dict) and isinstance(row.get("step"), (int, float))]


def series(rows: list[Row], *names: str) -> tuple[list[int], list[float]]:
    """Steps and values of the first of ``names`` that the log has."""
    for name in names:
        points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
        if points:
            return [step for step, _ in points], [value for _, value in points]
    return [], []


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isascii() and number.isdecimal() else -1
