"""Markdown tables, and the text between two marks of a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]], align_right: bool = False) -> str:
    """A Markdown table. ``align_right``: align every column but the first to the right, as tables of figures do."""
    rule = ["---", *(["---:" if align_right else "---"] * (len(heading) - 1))]
    return "\n".join([_line(heading), "|" + "|".join(rule) + "|", *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in cells)}|"


def between(text: str, marks: tuple[str, str], content: str) -> str:
    """``text`` with ``content`` in place of what stands between the two marks.

    Raises:
        ValueError: a mark is missing or occurs twice, or the second mark comes first.
    """
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} and {end}, once each, in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}{content}{end}{rest.split(end)[1]}"
