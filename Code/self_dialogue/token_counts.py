"""Counts rows, tokens, and the assistant's tokens, on which a training computes its loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..toolkit import rows
from ..toolkit.errors import Refusal
from ..toolkit.messages import Message
from . import formats

BATCH = 256


@dataclass
class Counts:
    """Sums over rows. Without a tokenizer, both numbers of tokens are None."""

    examples: int = 0
    trained_tokens: int | None = None
    tokens: int | None = None

    def share(self, whole: Counts) -> dict[str, float | None]:
        return {name: _ratio(getattr(self, name), getattr(whole, name)) for name in vars(self)}

    def __add__(self, other: Counts) -> Counts:
        trained_tokens, tokens = _sum(self.trained_tokens, other.trained_tokens), _sum(self.tokens, other.tokens)
        return Counts(self.examples + other.examples, trained_tokens, tokens)


@dataclass
class Row:
    """A checked row with its own counts. ``where`` is FILE:LINE."""

    where: str
    content: dict[str, Any]
    conversation: list[Message]
    format: str
    counts: Counts


def counted_rows(file: Path, tokenizer: Any = None) -> Iterator[Row]:
    """Yield the rows of a file, which must all have the format of the first row.

    Raises:
        Refusal: lists the first ten malformed rows, each with file and line. By then the caller has received the rows
            before the first malformed row.
    """
    format = ""

    def check(content: dict[str, Any]) -> tuple[dict[str, Any], list[Message]]:
        nonlocal format
        format = format or formats.detect(content)
        return content, formats.messages(content, format)

    batch: list[Row] = []
    for where, (content, conversation) in rows.checked(file, check):
        batch.append(Row(where, content, conversation, format, Counts(1)))
        if len(batch) == BATCH:
            yield from _counted(batch, tokenizer)
            batch = []
    yield from _counted(batch, tokenizer)
    if not format:
        raise Refusal("no-rows", f"{file} has no rows")


def count_row(content: dict[str, Any], format: str, tokenizer: Any) -> Counts:
    """The counts of one row. Tokenises the text in the row, whichever tokens the model wrote."""
    (row,) = _counted([Row("", content, formats.messages(content, format), format, Counts(1))], tokenizer)
    return row.counts


def count_file(file: Path, tokenizer: Any = None) -> Counts:
    """The counts of all rows of a file. Raises the refusals of :func:`counted_rows`."""
    total = no_counts(tokenizer)
    for row in counted_rows(file, tokenizer):
        total += row.counts
    return total


def no_counts(tokenizer: Any) -> Counts:
    """Zero rows, to add to."""
    return Counts() if tokenizer is None else Counts(0, 0, 0)


def _counted(batch: Sequence[Row], tokenizer: Any) -> Iterator[Row]:
    if tokenizer is not None and batch:
        turns = [(row, turn) for row in batch for turn in row.conversation]
        lengths = token_lengths(tokenizer, [turn.get("content") or "" for _, turn in turns])
        for row in batch:
            row.counts = Counts(1, 0, 0)
        for (row, turn), length in zip(turns, lengths):
            row.counts += Counts(0, length if turn["role"] == "assistant" else 0, length)
    yield from batch


def token_lengths(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a + b


def _ratio(a: int | None, b: int | None) -> float | None:
    return None if a is None or b is None or not b else a / b
