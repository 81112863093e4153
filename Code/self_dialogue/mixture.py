"""Task data and self-dialogues in one shuffled file.

A file of any size takes constant memory: rows are scattered at random over buckets on disk, each of which is then
shuffled in memory, so that every order of the rows is equally likely, and the same for the same seed.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..toolkit.errors import Refusal
from . import rows as formats
from .chat import Chat
from .rowfiles import RowWriter, dumps, kind
from .tally import Row, Tally, checked

BUCKET_BYTES = 16 << 20
BUCKETS = 200  # open files at a time
UNPACKED = {"parquet": 6}  # bytes of JSON for one in the file, roughly
BY = {"examples": "examples", "tokens": "trained_tokens"}


@dataclass(frozen=True)
class Mixture:
    """What the file holds. The shares are the dialogues' part of the whole."""

    format: str
    task: Tally
    dialogues: Tally

    def facts(self) -> dict[str, Any]:
        whole = self.task + self.dialogues
        share = self.dialogues.share(whole)
        return {"format": self.format, "task": asdict(self.task), "dialogues": asdict(self.dialogues), "share": share}


def wanted(ratio: float, task: Tally, by: str) -> float:
    """How much self-dialogue, in examples or trained tokens, makes up ``ratio`` of the whole."""
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
) -> Mixture:
    """Write ``out``; the dialogues are taken from the top of their file. ``ratio`` None: all of them.

    Rows of the task that have the format already are left as they are, with all their columns.

    Raises:
        Refusal: malformed rows, too few dialogues, or rows that ``format`` cannot hold; then ``out`` is not written.
    """
    if by == "tokens" and tokenizer is None and ratio is not None:
        wanted(ratio, Tally(), by)
    rng = random.Random(f"selfaug mix {seed}")
    empty = Tally(0, *((0, 0) if tokenizer is not None else ()))
    taken = {"task": empty, "dialogues": empty}
    with RowWriter(out) as writer, _Buckets([*task, dialogues], out, rng) as buckets:
        for file in task:
            for row in checked(file, tokenizer):
                format = format or row.format
                buckets.add(_converted(row, format, chat))
                taken["task"] += row.tally
        goal = None if ratio is None else wanted(ratio, taken["task"], by)
        for row in _until(checked(dialogues, tokenizer), goal, by, dialogues):
            buckets.add(_converted(row, format or row.format, chat))
            taken["dialogues"] += row.tally
        for line in buckets.shuffled():
            writer.write(line)
    return Mixture(str(format), **taken)


def _until(source: Iterator[Row], goal: float | None, by: str, file: Path) -> Iterator[Row]:
    """Rows up to ``goal``: the number nearest to it in examples, the first sum that reaches it in tokens."""
    found = 0.0
    goal_now = goal if goal is None or by == "tokens" else round(goal)
    while goal_now is None or found < goal_now:
        row = next(source, None)
        if row is None:
            if goal_now is None:
                return
            raise Refusal(
                "too-few-dialogues",
                f"{file} does not hold that share",
                expected=f"{goal_now:.0f} {'assistant tokens' if by == 'tokens' else 'dialogues'}",
                found=f"{found:.0f}",
                do="a smaller --ratio, or generate more",
            )
        found += getattr(row.tally, BY[by])
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
    except Refusal as refusal:  # of the chat template
        raise refusal.at(row.where) from None


class _Buckets:
    """Rows on disk, in as many parts as it takes for one to fit into memory."""

    def __init__(self, sources: Sequence[Path], out: Path, rng: random.Random) -> None:
        size = sum(path.stat().st_size * UNPACKED.get(kind(path), 1) for path in sources if path.is_file())
        self.count, self.out, self.rng = min(BUCKETS, size // BUCKET_BYTES + 1), out, rng
        self._files: list[BinaryIO] = []

    def __enter__(self) -> _Buckets:
        self._stack = ExitStack()
        folder = self.out.with_name(f".{self.out.name}.buckets")
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
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
