"""What `python -m selfaug_patcher` wrote down of this environment, or told the processes that `run` starts."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_TOLD = "_SELFAUG_RUN"  # the environment variable of `run`


def entry(target: str) -> dict[str, Any]:
    """The entry of an installed target (``transformers:qwen2``, ``peft:lora``); empty if there is none."""
    path = getattr(sys.modules.get(target.split(":")[0]), "__file__", None)
    if path is None:
        return {}
    record = _object(_text(Path(path).parent.parent / ".selfaug" / "receipt.json"), "targets")
    found = record.get(target)
    return found if isinstance(found, dict) else {}


def trust(target: str) -> str:
    """``pinned``, or ``proved here``, as `status` says it."""
    return "proved here" if is_proved_here(target) else "pinned"


def is_proved_here(target: str) -> bool:
    """Whether nobody has pinned this release of the target, and the trial on this machine proved it."""
    told = _object(os.environ.get(_TOLD, ""), "trust")
    return "proved" in entry(target) or told.get(target, "pinned") != "pinned"


def families_of_run() -> list[str]:
    """The families that `run` patches in this process; empty where no `run` has started it."""
    return [str(family) for family in _value(os.environ.get(_TOLD, ""), "families", list)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _object(text: str, key: str) -> dict[str, Any]:
    """The object under ``key`` in a JSON object; empty if there is no such thing."""
    found: dict[str, Any] = _value(text, key, dict)
    return found


def _value(text: str, key: str, kind: type) -> Any:
    try:
        value = json.loads(text)[key]
    except (ValueError, KeyError, TypeError, RecursionError):  # the last for JSON too deep for Python
        return kind()
    return value if isinstance(value, kind) else kind()
