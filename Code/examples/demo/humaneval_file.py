"""The problems in HumanEval's file, and the answers to them that ``humaneval.py`` has written.

Uses the standard library only, because the demo and the study look at the file before they begin, under any Python.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the checkout, for Code.toolkit

from Code.toolkit.errors import Refusal
from Code.toolkit.files import UTF8_MARK, lines, parse_json
from Code.toolkit.rows import malformed

COLUMNS = ("task_id", "prompt", "entry_point", "test")
ZIPPED = b"\x1f\x8b"  # the first bytes of a gzip file, whatever its name: browsers unpack what they fetch
Problem = dict[str, str]


def problems(file: Path) -> list[Problem]:
    """The problems in the official file, compressed or not.

    Raises:
        Refusal: the file cannot be read, or a line is no problem. The refusal names file and line.
    """
    try:
        whole = file.read_bytes()
        text = gzip.decompress(whole) if whole.startswith(ZIPPED) else whole
    except (OSError, EOFError, zlib.error) as error:
        raise Refusal("no-file", f"{file} cannot be read", "HumanEval.jsonl.gz", str(error)) from None
    found: dict[int, Problem] = {}
    for line, content in enumerate(text.split(b"\n"), 1):
        try:
            row = content.decode().strip().lstrip(UTF8_MARK)
            if row:
                one = problem(row)
                if (new := number(one["task_id"])) in found:
                    raise ValueError(f"{found[new]['task_id']} is there already, and answers are told by the number")
                found[new] = one
        except ValueError as error:
            raise malformed(file, line, f"no problem of HumanEval: {error}") from None
    if not found:
        raise Refusal("no-rows", f"{file} has no problems")
    return list(found.values())


def problem(row: str) -> Problem:
    """Raises ValueError unless the row is JSON and has what a problem has."""
    one = parse_json(row)
    if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in COLUMNS):
        raise ValueError(f"expected an object with the texts {', '.join(COLUMNS)}, found {row[:60]}")
    return one


def number(task_id: str) -> int:
    """12, of HumanEval/12. Raises ValueError if there is no number."""
    digits = task_id.rpartition("/")[2]
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"expected a task_id such as HumanEval/12, found {task_id[:60]!r}")
    return int(digits)


def answers(file: Path) -> list[dict[str, Any]]:
    """The rows of ``humaneval.py``, in the order of the problems.

    Raises:
        Refusal: a line is no such row. The refusal names file and line.
    """
    rows: dict[int, dict[str, Any]] = {}
    for line, content in lines(file):
        try:
            row = parse_json(content)
            if line > 1:  # the first one has the key of the settings
                rows[number(row["task_id"])] = row
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise malformed(file, line, f"no row of humaneval.py: {error!r}. Delete the file") from None
    return [row for _, row in sorted(rows.items())]
