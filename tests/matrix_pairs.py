"""The pairs of tests/matrix.py, in matrix_pairs.txt: a line is a release of transformers, and the pefts beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from packaging.version import Version

PATH = Path(__file__).with_suffix(".txt")

Rows = dict[str, tuple[str, ...]]  # transformers to its pefts
Pair = tuple[str, str]


def read() -> Rows:
    lines = [line.split() for line in PATH.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return {transformers: tuple(pefts) for transformers, *pefts in lines}


def write(rows: Rows) -> None:
    """In the order of the releases, under the comment that the file has."""
    comment = [line for line in PATH.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    lines = [
        " ".join([f"{row:<9}", *(f"{peft:<7}" for peft in rows[row])]).rstrip() for row in sorted(rows, key=Version)
    ]
    PATH.write_text("\n".join([*comment, "", *lines, ""]), encoding="utf-8")


def pairs(rows: Rows) -> list[Pair]:
    return [(transformers, peft) for transformers, pefts in rows.items() for peft in pefts]


def with_release(rows: Rows, package: str, version: str, same_files: Callable[[str], bool]) -> tuple[Rows, list[Pair]]:
    """The rows with a new release, and the pairs to run for it.

    The release takes the place of the one before it where both have the same files: so every distinct file stays in the
    rows. Otherwise a release of transformers gets a row of its own, with the newest and the oldest peft of the row
    before; a release of peft joins the last row that has the peft before it.

    Args:
        same_files: whether that older release of the package has the same files as this one.
    """
    others = list(rows) if package == "transformers" else [peft for pefts in rows.values() for peft in pefts]
    before = max((other for other in others if Version(other) < Version(version)), key=Version)
    changed = dict(rows)
    if package == "transformers":
        pefts = rows[before]
        if same_files(before):
            del changed[before]
        else:
            pefts = tuple(dict.fromkeys((max(pefts, key=Version), min(pefts, key=Version))))
        changed[version] = pefts
        changed = {row: changed[row] for row in sorted(changed, key=Version)}
        return changed, [(version, peft) for peft in pefts]
    row = [transformers for transformers, pefts in rows.items() if before in pefts][-1]
    if same_files(before):
        changed[row] = tuple(version if peft == before else peft for peft in rows[row])
    else:
        changed[row] = (*rows[row], version)
    return changed, [(row, version)]
