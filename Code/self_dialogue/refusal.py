"""Why a command does not go on: what, expected, found, and what to do."""

from __future__ import annotations

import importlib
from typing import Any


class Refusal(Exception):
    """One reason, with a stable kebab-case id. ``str()`` is the text that users read."""

    def __init__(self, id: str, what: str, expected: str = "", found: str = "", do: str = "") -> None:
        lines = [f"error[{id}]: {what}"]
        lines += [f"  {f'{name}:':<10}{text}" for name, text in (("expected", expected), ("found", found)) if text]
        lines += [f"  {'do:':<10}{do}"] if do else []
        super().__init__("\n".join(lines))
        self.id = id


def first_line(error: Exception) -> str:
    """What an error of another library says, in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'nothing said'}"


def optional(module: str, purpose: str) -> Any:
    """Import a module that only some options need.

    Raises:
        Refusal: it is not installed; the text has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Refusal(
            "not-installed", f"{purpose} needs {module}", found=str(error), do=f"pip install {module}"
        ) from None
