"""Why a command stops: what failed, what the command expected, what it found, and what the user can do."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import Any


class Refusal(Exception):
    """One reason, with a stable id in kebab case. ``str()`` gives the text that users read."""

    def __init__(self, id: str, what: str, expected: str = "", found: str = "", do: str = "") -> None:
        lines = [f"error[{id}]: {what}"]
        lines += [f"  {f'{name}:':<10}{text}" for name, text in (("expected", expected), ("found", found)) if text]
        lines += [f"  {'do:':<10}{do}"] if do else []
        super().__init__("\n".join(lines))
        self.id = id
        self.what, self.expected, self.found, self.do = what, expected, found, do

    def at(self, where: str) -> Refusal:
        """The same reason for one row: ``where`` is FILE:LINE. Without a ``where``, this very refusal."""
        if not where:
            return self
        return Refusal(self.id, f"{where}: {self.what}", self.expected, self.found, self.do)

    @classmethod
    def listing(cls, id: str, texts: Sequence[str]) -> Refusal:
        """One refusal whose text is the texts of several, a line each."""
        refusal = cls(id, "\n".join(texts))
        refusal.args = (refusal.what,)
        return refusal


def message(error: Refusal | OSError) -> str:
    """What a command prints before it exits with 1: the refusal, or the error of a file."""
    return str(error) if isinstance(error, Refusal) else f"error[file]: {error}"


def print_anything() -> None:
    """Let stdout and stderr escape characters that the terminal cannot encode: file names may hold any bytes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def first_line(error: BaseException) -> str:
    """The type and the first line of another library's error."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'nothing said'}"


def optional(module: str, purpose: str) -> Any:
    """Import a module that only some options need.

    Raises:
        Refusal: the module is not installed. The refusal has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Refusal(
            "not-installed", f"{purpose} needs {module}", found=str(error), do=f"pip install {module.split('.')[0]}"
        ) from None
