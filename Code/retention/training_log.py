"""The log of an adapter's training: ``log_history`` of ``trainer_state.json``, if that file lies beside the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from ..toolkit.files import read_json

Row = dict[str, Any]


def logs(folder: Path) -> list[Row]:
    """``log_history`` in the adapter's folder; without one, that of the last checkpoint in the folder; else empty."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)
    for place in (folder, *checkpoints):
        try:
            history = list(read_json(place / "trainer_state.json")["log_history"])
        except (OSError, Refusal, KeyError, TypeError):
            continue
        return [row for row in history if isinstance(row, dict) and isinstance(row.get("step"), (int, float))]
    return []


def series(rows: list[Row], *names: str) -> tuple[list[int], list[float]]:
    """Steps and values of the first of ``names`` that the log has."""
    for name in names:
        points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
        if points:
            return [step for step, _ in points], [value for _, value in points]
    return [], []


def _step(folder: Path) -> int:
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1
