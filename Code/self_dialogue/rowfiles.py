"""Files of rows: JSONL, JSON (a list of objects) and Parquet, by way of pyarrow and ``datasets``.

JSONL and JSON are read by our own code: ``datasets`` turns texts that look like dates into times, gives no line
numbers, and needs a cache on disk. One row is in memory at a time; a file appears whole or not at all.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ..toolkit.errors import Refusal, first_line, optional
from ..toolkit.files import DECODER, DEEPEST, check_text, lines, opened, parse_json

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
BLOCK = 1 << 20
PARQUET_ROWS = 1000  # in memory at a time
Line = tuple[int, Any]


def kind(path: Path) -> str:
    if path.suffix not in KINDS:
        raise Refusal(
            "unknown-file", f"{path}: what kind of file is this?", ", ".join(KINDS), path.suffix or "no suffix"
        )
    return KINDS[path.suffix]


def rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file, each with the line that it starts on (in Parquet: its number), from 1.

    Raises:
        Refusal: there is no such file, or a row is no JSON object or holds half a character; with file and line.
    """
    if not path.is_file():
        raise Refusal("no-file", f"there is no file {path}")
    for line, value in {"jsonl": _jsonl, "json": _json, "parquet": _parquet}[kind(path)](path):
        if not isinstance(value, dict):
            raise malformed(path, line, f"a row is an object, not {json.dumps(value)[:40]}")
        yield line, value


def malformed(path: Path, line: int, what: str) -> Refusal:
    return Refusal("malformed-row", f"{path}:{line}: {what}")


def _jsonl(path: Path) -> Iterator[Line]:
    for number, line in lines(path):
        try:
            yield number, parse_json(line)
        except ValueError as error:
            no_json = "no JSON: " if isinstance(error, json.JSONDecodeError) else ""
            raise malformed(path, number, f"{no_json}{error}") from None


def _json(path: Path) -> Iterator[Line]:
    """The elements of a JSON list, read in blocks: ``json.load`` would hold the whole file."""
    with opened(path) as stream:
        source = _Source(stream)
        try:
            if source.peek() != "[":
                raise ValueError("a JSON file of rows is a list of objects; one object per line is .jsonl")
            source.drop(1)
            while source.peek() != "]":
                line = source.line
                value = source.value()
                check_text(value)
                yield line, value
                if source.peek() == ",":
                    source.drop(1)
                    if source.peek() == "]":
                        raise ValueError("no JSON: a comma before the end of the list")
                elif source.peek() != "]":
                    raise ValueError("no JSON: expected a comma or the end of the list")
            source.drop(1)
            if source.peek():
                raise ValueError("something follows the list")
        except UnicodeDecodeError:
            raise
        except RecursionError:
            what = f"lists or objects nested deeper than {DEEPEST} levels"
            raise malformed(path, source.line, what) from None
        except ValueError as error:
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
            self.drop(len(self.text) - len(self.text.lstrip(" \t\r\n")))
            if self.text or not self.more():
                return self.text[:1]

    def value(self) -> Any:
        while True:
            try:
                value, end = DECODER.raw_decode(self.text)
                if end < len(self.text) or not self.more():  # else a number may go on in the next block
                    self.drop(end)
                    return value
            except json.JSONDecodeError as error:
                cut_short = error.pos >= len(self.text) - 12 or error.msg.startswith("Unterminated")
                if not (cut_short and self.more()):
                    raise ValueError(f"no JSON: {error.msg}") from None


def _parquet(path: Path) -> Iterator[Line]:
    """By pyarrow, as it stands in the file: ``datasets`` would decode pictures, and turn lists of objects about."""
    parquet = optional("pyarrow.parquet", "Parquet")
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise malformed(path, 1, f"two columns have the name {twice[0]!r}")
            for batch in file.iter_batches(PARQUET_ROWS):
                columns = [_values(column, f"{path}:{number + 1}", name) for name, column in zip(names, batch.columns)]
                for values in zip(*columns):
                    number += 1
                    row = {name: value for name, value in zip(names, values) if value is not None}
                    try:
                        check_text(row)
                    except ValueError as error:
                        raise malformed(path, number, str(error)) from None
                    yield number, row
    except Refusal:
        raise
    except Exception as error:  # pyarrow has errors of many kinds for a file that is no Parquet
        what = f"this Parquet file cannot be read ({first_line(error)})"
        raise malformed(path, number + 1, what) from None


def _values(column: Any, where: str, name: str) -> list[Any]:
    """A column of a batch as Python has it.

    Raises:
        Refusal: Python, or JSON, has nothing for its type.
    """
    try:
        if "map<" in str(column.type):
            raise ValueError(f"{column.type}: JSON has no maps")
        return list(column.to_pylist())
    except (ArithmeticError, ValueError) as error:  # a time before the year 1, or finer than Python has them
        do = "take the column out, or make it text"
        raise Refusal("malformed-row", f"{where}: the column {name} cannot be read", found=str(error), do=do) from None


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
        """By ``datasets``, with the types of our rows: left to itself, it would read texts such as 2024-01-01 as times.

        Raises:
            Refusal: a column has values of several types, or none that Parquet knows.
        """
        datasets = optional("datasets", "Parquet")
        target = self._temporary.with_name(self._temporary.name + ".parquet")
        try:
            with tempfile.TemporaryDirectory(prefix=f".{self.path.name}.", dir=self.path.parent) as cache:
                features = datasets.Features.from_arrow_schema(self._schema())
                made = datasets.Dataset.from_generator(
                    _written, features=features, cache_dir=cache, gen_kwargs={"path": self._temporary}
                )
                made.to_parquet(str(target))
            os.replace(target, self._temporary)
        except Refusal:
            raise
        except Exception as error:  # datasets and pyarrow have errors of many kinds for values that they cannot hold
            found = first_line(error.__cause__ or error)
            do = "one type of value per column, or --out FILE.jsonl"
            raise Refusal("no-parquet", f"{self.path}: Parquet cannot hold these rows", found=found, do=do) from None
        finally:
            target.unlink(missing_ok=True)

    def _schema(self) -> Any:
        """The columns of all rows and their types, part by part."""
        arrow = optional("pyarrow", "Parquet")
        schema, part = arrow.schema([]), []
        source = _written(self._temporary)
        while part := [row for _, row in zip(range(PARQUET_ROWS), source)]:
            names = dict.fromkeys(name for row in part for name in row)
            fields = []
            for name in names:
                try:
                    fields.append((name, arrow.array([row.get(name) for row in part]).type))
                except (arrow.ArrowException, OverflowError) as error:
                    what = f"{self.path}: Parquet cannot hold the column {name}"
                    do = "one type of value per column, or --out FILE.jsonl"
                    raise Refusal("no-parquet", what, found=first_line(error), do=do) from None
            schema = arrow.unify_schemas([schema, arrow.schema(fields)], promote_options="permissive")
        return schema


def _written(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)


def dumps(value: Any) -> bytes:
    """``value`` as one line of JSON.

    Raises:
        TypeError, ValueError: a part of it has no form in JSON; with its column.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        place, kind = next(_not_json(value, ""), ("the value", "of a kind"))
        what = f"{place} is {kind}, which JSON cannot hold: take it out, or make it text"
        raise type(error)(what) from None
    try:
        return text.encode()
    except UnicodeEncodeError:  # the name of a file may have such characters; rows do not, see check_text
        return json.dumps(value).encode()


def _not_json(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _not_json(inner, f"{place}.{name}" if place else str(name))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _not_json(inner, f"{place}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield place or "the value", str(value)
    elif not isinstance(value, (str, int, float, type(None))):
        yield place or "the value", f"of type {type(value).__name__}"
