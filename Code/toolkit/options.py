"""Numbers on a command line: types for argparse, which ends the command with what was expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"a whole number > 0, not {text!r}")
    return int(text)


def above_zero(text: str) -> float:
    return _number(text, "a number > 0", lambda number: number > 0)


def not_negative(text: str) -> float:
    return _number(text, "a number >= 0", lambda number: number >= 0)


def share(text: str) -> float:
    return _number(text, "a number between 0 and 1", lambda number: 0 < number < 1)


def _number(text: str, what: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and fits(number)):
        raise argparse.ArgumentTypeError(f"{what}, not {text!r}")
    return number
