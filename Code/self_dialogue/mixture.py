"""Task data and self-dialogues in one shuffled file.

A file of any size takes constant memory: rows go to random buckets on disk, and each bucket is then shuffled in memory.
Every order of the rows is equally likely, and the same seed gives the same order. ``datasets`` could shuffle, too, but
would read rows from all over the disk.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..toolkit.chat import Chat
from ..toolkit.errors import Refusal
from ..toolkit.files import dumps
from ..toolkit.rows import RowWriter, kind
from . import anchors as anchor_rows
from . import formats
from .token_counts import Counts, Row, counted_rows, no_counts

BUCKET_BYTES = 16 << 20
BUCKETS = 200  # open files at a time
UNPACKED = {"parquet": 6}  # bytes of JSON per byte of the file, roughly
BY = {"examples": "examples", "tokens": "trained_tokens"}


@dataclass(frozen=True)
class Mixture:
    """What the file holds. The shares in :meth:`facts` are those of the dialogues in the whole."""

    format: str
    task: Counts
    dialogues: Counts

    def facts(self) -> dict[str, Any]:
        whole = self.task + self.dialogues
        share = self.dialogues.share(whole)
        return {"format": self.format, "task": asdict(self.task), "dialogues": asdict(self.dialogues), "share": share}


def wanted(ratio: float, task: Counts, by: str) -> float:
    """How many self-dialogues, in examples or trained tokens, make up the share ``ratio`` of the whole."""
    amount = getattr(task, BY[by])
    if amount is None:
        raise Refusal("no-tokenizer", "--by tokens counts tokens", do="--tokenizer NAME_OR_PATH")
    return float(amount * ratio / (1 - ratio))


def mix(
    task: Sequence[Path],
    dialogues: Path,
    out: Path,
    ratio: float | None = None,
    by: str = "examples",
    seed: int = 0,
    format: str | None = None,
    tokenizer: Any = None,
    chat: Chat | None = None,
    anchors: bool = False,
) -> Mixture:
    """Write ``out`` from the task data and the first dialogues of their file.

    Task rows that already have the format keep their bytes and all their columns.

    Args:
        ratio: the share of the dialogues in the whole; None takes all dialogues.
        by: what ``ratio`` counts, a key of ``BY``.
        format: of all rows; None takes the format of the first task row.
        chat: renders the prompts of ``prompt-completion`` rows; None writes the user's bare text. With ``anchors``, the
            template that the ``tokenizer`` got in place of its own; None if it has its own.
        anchors: write token ids, by the ``tokenizer``, and dialogues without labels, see :mod:`.anchors`. Then
            ``format`` has to be None.

    Raises:
        Refusal: a row is malformed, the dialogues are too few, or ``format`` cannot hold a row. Then ``out`` is not
            written.
    """
    if by == "tokens" and tokenizer is None and ratio is not None:
        wanted(ratio, Counts(), by)
    plain = chat is not None and chat.plain
    rng = random.Random(f"selfaug mix {seed}")
    counts = {"task": no_counts(tokenizer), "dialogues": no_counts(tokenizer)}
    with RowWriter(out) as writer, _Buckets([*task, dialogues], out, rng) as buckets:
        for file in task:
            for row in counted_rows(file, tokenizer):
                format = format or row.format
                ids = anchor_rows.task_row(row, tokenizer, plain) if anchors else None
                buckets.add(_converted(row, format, chat) if ids is None else dumps(ids))
                counts["task"] += row.counts
        goal = None if ratio is None else wanted(ratio, counts["task"], by)
        for row in _until(counted_rows(dialogues, tokenizer), goal, by, dialogues):
            format = format or row.format
            ids = anchor_rows.anchor(row, tokenizer, plain) if anchors else None
            buckets.add(_converted(row, format, chat) if ids is None else dumps(ids))
            counts["dialogues"] += row.counts
        for line in buckets.shuffled():
            writer.write(line)
    return Mixture(anchor_rows.FORMAT if anchors else str(format), **counts)


def _until(source: Iterator[Row], goal: float | None, by: str, file: Path) -> Iterator[Row]:
    """Yield rows until their sum reaches ``goal``, which is rounded where it counts examples. None yields all rows."""
    total = 0.0
    rounded_goal = goal if goal is None or by == "tokens" else round(goal)
    while rounded_goal is None or total < rounded_goal:
        row = next(source, None)
        if row is None:
            if rounded_goal is None:
                return
            raise Refusal(
                "too-few-dialogues",
                f"{file} does not hold that share",
                expected=f"{rounded_goal:.0f} {'assistant tokens' if by == 'tokens' else 'dialogues'}",
                found=f"{total:.0f}",
                do="a smaller --ratio, or generate more",
            )
        total += getattr(row.counts, BY[by])
        yield row


def _converted(row: Row, format: str, chat: Chat | None) -> bytes:
    try:
        if row.format == format:
            return dumps(row.content)
        return dumps(formats.converted(row.content, row.format, row.conversation, format, chat))
    except (TypeError, ValueError) as error:
        if row.format == format:
            raise Refusal("malformed-row", f"{row.where}: {error}") from None
        what, do = f"{row.where}: this {row.format} row does not fit {format}: {error}", "another --format"
        raise Refusal("other-format", what, do=do) from None
    except Refusal as refusal:  # the chat template fails on this row
        raise refusal.at(row.where) from None


class _Buckets:
    """Lines on disk, in so many files that each file fits into memory."""

    def __init__(self, sources: Sequence[Path], out: Path, rng: random.Random) -> None:
        size = sum(path.stat().st_size * UNPACKED.get(kind(path), 1) for path in sources if path.is_file())
        self.count, self.out, self.rng = min(BUCKETS, size // BUCKET_BYTES + 1), out, rng
        self._files: list[BinaryIO] = []

    def __enter__(self) -> _Buckets:
        self._stack = ExitStack()
        folder = self.out.with_name(f".{self.out.name}.buckets")
        shutil.rmtree(folder, ignore_errors=True)  # a killed run may have left the folder
        folder.mkdir()
        self._stack.callback(shutil.rmtree, folder)
        enter: Callable[[BinaryIO], BinaryIO] = self._stack.enter_context
        self._files = [enter((folder / str(number)).open("w+b")) for number in range(self.count)]
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def add(self, line: bytes) -> None:
        self._files[self.rng.randrange(self.count)].write(line + b"\n")

    def shuffled(self) -> Iterator[bytes]:
        for file in self._files:
            file.seek(0)
            lines = file.read().splitlines() if self.count else []
            self.rng.shuffle(lines)
            yield from lines
