"""Files of rows: JSONL, JSON (a list of objects) and, where ``datasets`` is installed, Parquet. One row in memory at a
time; a file appears whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from .refusal import Refusal, optional

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
BLOCK = 1 << 20


def kind(path: Path) -> str:
    if path.suffix not in KINDS:
        raise Refusal(
            "unknown-file", f"{path}: what kind of file is this?", ", ".join(KINDS), path.suffix or "no suffix"
        )
    return KINDS[path.suffix]


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, each with the line that it starts on (in Parquet: its number), from 1.

    Raises:
        Refusal: there is no such file, or a row is no JSON object; with file and line.
    """
    if not path.is_file():
        raise Refusal("no-file", f"there is no file {path}")
    source = {"jsonl": _jsonl, "json": _json, "parquet": _parquet}[kind(path)](path)
    for line, value in source:
        if not isinstance(value, dict):
            raise malformed(path, line, f"a row is an object, not {json.dumps(value)[:40]}")
        yield line, value


def read_text(path: Path) -> str:
    """The whole of a file that is no file of rows.

    Raises:
        Refusal: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refusal("not-text", f"{path} cannot be read", expected="UTF-8", found=str(error)) from None


def malformed(path: Path, line: int, what: str) -> Refusal:
    return Refusal("malformed-row", f"{path}:{line}: {what}")


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:  # also text that is not UTF-8
                    raise malformed(path, number, f"no JSON: {error}") from None


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list, read in blocks: ``json.load`` would hold the whole file."""
    with path.open(encoding="utf-8-sig") as stream:
        source = _Source(stream)
        try:
            if source.peek() != "[":
                raise ValueError("a JSON file of rows is a list of objects; one object per line is .jsonl")
            source.drop(1)
            while source.peek() != "]":
                line = source.line
                yield line, source.value()
                if source.peek() == ",":
                    source.drop(1)
                elif source.peek() != "]":
                    raise ValueError("no JSON: expected a comma or the end of the list")
            source.drop(1)
            if source.peek():
                raise ValueError("something follows the list")
        except ValueError as error:  # also text that is not UTF-8
            raise malformed(path, source.line, str(error)) from None


class _Source:
    """The unread part of a JSON text, as much of it as has been needed, and the line that it is at."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.text, self.line = stream, "", 1

    def more(self) -> bool:
        block = self.stream.read(BLOCK)
        self.text += block
        return bool(block)

    def drop(self, count: int) -> None:
        self.line += self.text.count("\n", 0, count)
        self.text = self.text[count:]

    def peek(self) -> str:
        """The next character that is no white space, or '' at the end."""
        while True:
            self.drop(len(self.text) - len(self.text.lstrip()))
            if self.text or not self.more():
                return self.text[:1]

    def value(self) -> Any:
        while True:
            try:
                value, end = json.JSONDecoder().raw_decode(self.text)
                if end < len(self.text) or not self.more():  # else a number may go on in the next block
                    self.drop(end)
                    return value
            except json.JSONDecodeError as error:
                cut_short = error.pos >= len(self.text) - 8 or error.msg.startswith("Unterminated")
                if not (cut_short and self.more()):
                    raise ValueError(f"no JSON: {error.msg}") from None


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    datasets = optional("datasets", "Parquet")
    stream = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
    for number, row in enumerate(stream, 1):
        yield number, {name: value for name, value in row.items() if value is not None}


class RowWriter:
    """Writes lines of JSON; the file takes its place when the block ends well, and leaves no trace otherwise."""

    def __init__(self, path: Path) -> None:
        self.path, self.kind = path, kind(path)
        if self.kind == "parquet":
            optional("datasets", "Parquet")
        if not path.parent.is_dir():
            raise Refusal("no-folder", f"there is no folder {path.parent}")
        self.count = 0

    def __enter__(self) -> RowWriter:
        # always the same name, so that what a killed run left is written over by the next
        self._temporary = self.path.with_name(f".{self.path.name}.part")
        self._stream = self._temporary.open("wb")
        return self

    def write(self, line: bytes) -> None:
        """One row, as ``dumps`` makes it."""
        if self.kind == "json":
            self._stream.write(b",\n" if self.count else b"[\n")
            self._stream.write(line)
        else:
            self._stream.write(line + b"\n")
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self.kind == "json":
                    self._stream.write(b"\n]\n" if self.count else b"[]\n")
                self._stream.flush()
                os.fsync(self._stream.fileno())
                if self.kind == "parquet":
                    self._to_parquet()
                os.replace(self._temporary, self.path)
        finally:
            self._stream.close()
            self._temporary.unlink(missing_ok=True)

    def _to_parquet(self) -> None:
        datasets = optional("datasets", "Parquet")
        target = self._temporary.with_name(self._temporary.name + ".parquet")
        with tempfile.TemporaryDirectory(prefix=f".{self.path.name}.", dir=self.path.parent) as cache:
            table = datasets.Dataset.from_json(str(self._temporary), cache_dir=cache)
            table.to_parquet(str(target))
        os.replace(target, self._temporary)


def dumps(row: Any) -> bytes:
    text = json.dumps(row, ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, as some exports have
        return json.dumps(row).encode()
