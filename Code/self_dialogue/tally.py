"""How much of a file is trained on: rows, tokens, and tokens of the assistant, which are the ones that have a loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from . import rows as formats
from .chat import Message
from .rowfiles import malformed, rows

BATCH = 256
PROBLEMS = 10


@dataclass
class Tally:
    """Sums over rows; without a tokenizer the tokens are None."""

    examples: int = 0
    trained_tokens: int | None = None
    tokens: int | None = None

    def share(self, whole: Tally) -> dict[str, float | None]:
        return {name: _ratio(getattr(self, name), getattr(whole, name)) for name in vars(self)}

    def __add__(self, other: Tally) -> Tally:
        return Tally(**{name: _sum(value, getattr(other, name)) for name, value in vars(self).items()})


@dataclass
class Row:
    """A checked row, and the file and line that it is from; ``tally`` is its own."""

    where: str
    content: dict[str, Any]
    conversation: list[Message]
    format: str
    tally: Tally


def checked(file: Path, tokenizer: Any = None) -> Iterator[Row]:
    """The rows of a file, all of one format.

    Raises:
        Refusal: malformed rows, each with file and line, ten at most. Rows before the first have been handed out.
    """
    format = ""
    problems: list[str] = []
    batch: list[Row] = []
    for line, content in rows(file):
        try:
            format = format or formats.detect(content)
            conversation = formats.messages(content, format)
        except ValueError as error:
            problems.append(str(malformed(file, line, str(error))))
            if len(problems) == PROBLEMS:
                break
            continue
        if not problems:
            batch.append(Row(f"{file}:{line}", content, conversation, format, Tally(1)))
            if len(batch) == BATCH:
                yield from _counted(batch, tokenizer)
                batch = []
    if problems:
        raise _All(problems)
    yield from _counted(batch, tokenizer)
    if not format:
        raise Refusal("no-rows", f"{file} has no rows")


def of_row(content: dict[str, Any], format: str, tokenizer: Any) -> Tally:
    """A row's own tally: of the text as it stands in the file, whatever tokens it was written with."""
    (row,) = _counted([Row("", content, formats.messages(content, format), format, Tally(1))], tokenizer)
    return row.tally


def tally(file: Path, tokenizer: Any = None) -> Tally:
    total = Tally(0, *((0, 0) if tokenizer is not None else ()))
    for row in checked(file, tokenizer):
        total += row.tally
    return total


class _All(Refusal):
    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("malformed-row", "\n".join(problems))

    def __str__(self) -> str:
        return self.what


def _counted(batch: Sequence[Row], tokenizer: Any) -> Iterator[Row]:
    if tokenizer is not None and batch:
        turns = [(row, turn) for row in batch for turn in row.conversation]
        lengths = token_lengths(tokenizer, [turn.get("content") or "" for _, turn in turns])
        for row in batch:
            row.tally = Tally(1, 0, 0)
        for (row, turn), length in zip(turns, lengths):
            row.tally += Tally(0, length if turn["role"] == "assistant" else 0, length)
    yield from batch


def token_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def total(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, Tally(0, 0, 0))


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _ratio(a: int | None, b: int | None) -> float | None:
    return None if a is None or b is None or not b else a / b
