"""Why a command stops: what failed, what was expected, what was found, and what to do."""

from __future__ import annotations

import importlib
import io
import sys
from typing import Any


class Refusal(Exception):
    """One reason, with a stable kebab-case id. ``str()`` is the text that users read."""

    def __init__(self, id: str, what: str, expected: str = "", found: str = "", do: str = "") -> None:
        lines = [f"error[{id}]: {what}"]
        lines += [f"  {f'{name}:':<10}{text}" for name, text in (("expected", expected), ("found", found)) if text]
        lines += [f"  {'do:':<10}{do}"] if do else []
        super().__init__("\n".join(lines))
        self.id = id
        self.what, self.expected, self.found, self.do = what, expected, found, do

    def at(self, where: str) -> Refusal:
        """The same reason, with the file and line that it concerns."""
        return Refusal(self.id, f"{where}: {self.what}", self.expected, self.found, self.do)


def message(error: Refusal | OSError) -> str:
    """What a command prints before it exits with 1: a refusal, or a file that cannot be read or written."""
    return str(error) if isinstance(error, Refusal) else f"error[file]: {error}"


def print_anything() -> None:
    """Let stdout and stderr escape what the terminal's encoding cannot hold: a file name may be any bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def first_line(error: BaseException) -> str:
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
            "not-installed", f"{purpose} needs {module}", found=str(error), do=f"pip install {module.split('.')[0]}"
        ) from None
