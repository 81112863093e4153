"""The one reader and the one writer of rows: JSONL, JSON (a list of objects) and Parquet.

pyarrow reads Parquet, and ``datasets`` writes it. JSONL and JSON have a reader of our own, because ``datasets`` gives
no line numbers, turns texts that look like dates into times, and needs a cache on disk. A reader holds one row in
memory at a time. A writer puts the whole file in place at the end, or leaves no trace.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO, TypeVar

from .errors import Refusal, first_line, optional
from .files import DECODER, check_text, lines, opened, parse_json, read_start

KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".parquet": "parquet"}
BLOCK = 1 << 20
PARQUET_ROWS = 1000  # in memory at a time
PROBLEMS = 10  # malformed rows that one refusal lists
Line = tuple[int, Any]
T = TypeVar("T")


def kind(path: Path) -> str:
    """jsonl, json or parquet, by the suffix.

    Raises:
        Refusal: no reader knows the suffix.
    """
    if path.suffix not in KINDS:
        raise Refusal(
            "unknown-file", f"{path}: what kind of file is this?", ", ".join(KINDS), path.suffix or "no suffix"
        )
    return KINDS[path.suffix]


def rows(path: Path, jsonl_by_default: bool = False) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) for each row of a file. Lines count from 1; in Parquet the line is the number of the row.

    Args:
        jsonl_by_default: read a file as JSONL if its suffix is unknown, or if it ends in .json and holds no list.

    Raises:
        Refusal: the file does not exist, a row is not a JSON object, or a row holds half a character. The refusal
            names file and line.
    """
    if not path.is_file():
        raise Refusal("no-file", f"there is no file {path}", found="a folder" if path.is_dir() else "")
    if jsonl_by_default and (path.suffix not in KINDS or (kind(path) == "json" and read_start(path) != "[")):
        read = _jsonl
    else:
        read = {"jsonl": _jsonl, "json": _json, "parquet": _parquet}[kind(path)]
    for line, value in read(path):
        if not isinstance(value, dict):
            raise malformed(path, line, f"expected an object, found {type(value).__name__}: {json.dumps(value)[:40]}")
        yield line, value


def checked(path: Path, check: Callable[[dict[str, Any]], T]) -> Iterator[tuple[str, T]]:
    """Yield ("FILE:LINE", ``check(row)``) for each row. ``check`` raises ValueError for a row that it refuses.

    Raises:
        Refusal: lists the first ten malformed rows, each with file and line. By then the caller has received the rows
            before the first malformed row.
    """
    problems: list[str] = []
    for line, row in rows(path):
        try:
            checked_row = check(row)
        except ValueError as error:
            problems.append(str(malformed(path, line, str(error))))
            if len(problems) == PROBLEMS:
                break
            continue
        if not problems:
            yield f"{path}:{line}", checked_row
    if problems:
        raise Refusal.listing("malformed-row", problems)


def malformed(path: Path, line: int, what: str) -> Refusal:
    return Refusal("malformed-row", f"{path}:{line}: {what}")


def _jsonl(path: Path) -> Iterator[Line]:
    for number, line in lines(path):
        try:
            yield number, parse_json(line)
        except ValueError as error:
            not_json = "expected JSON, found: " if isinstance(error, json.JSONDecodeError) else ""
            raise malformed(path, number, f"{not_json}{error}") from None


def _json(path: Path) -> Iterator[Line]:
    """Yield the elements of a JSON list. Reads in blocks, because ``json.load`` would hold the whole file."""
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
                        raise ValueError("expected JSON, found: a comma before the end of the list")
                elif source.peek() != "]":
                    raise ValueError("expected a comma or the end of the list")
            source.drop(1)
            if source.peek():
                raise ValueError("expected the end of the file after the list")
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise malformed(path, source.line, str(error)) from None


class _Source:
    """A JSON text that is read on demand: ``text`` is read but not parsed yet, and ``line`` is its first line."""

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
        """The next character that is not white space, or '' at the end."""
        while True:
            self.drop(len(self.text) - len(self.text.lstrip(" \t\r\n")))
            if self.text or not self.more():
                return self.text[:1]

    def value(self) -> Any:
        while True:
            try:
                value, end = DECODER.raw_decode(self.text)
                if end < len(self.text) or not self.more():  # otherwise a number may continue in the next block
                    self.drop(end)
                    return value
            except json.JSONDecodeError as error:
                cut_short = error.pos >= len(self.text) - 12 or error.msg.startswith("Unterminated")
                if not (cut_short and self.more()):
                    raise ValueError(f"expected JSON, found: {error.msg}") from None


def _parquet(path: Path) -> Iterator[Line]:
    """pyarrow reads values as the file holds them; ``datasets`` would decode images and transpose lists of objects."""
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
    except Exception as error:  # pyarrow raises errors of many kinds for a file that is not Parquet
        what = f"this Parquet file cannot be read ({first_line(error)})"
        raise malformed(path, number + 1, what) from None


def _values(column: Any, where: str, name: str) -> list[Any]:
    """The values of a column of a batch, as Python objects.

    Raises:
        Refusal: Python or JSON cannot represent the type.
    """
    try:
        if "map<" in str(column.type):
            raise ValueError(f"{column.type}: JSON has no maps")
        return list(column.to_pylist())
    except (ArithmeticError, ValueError) as error:  # a time before the year 1, or finer than a microsecond
        do = "remove the column, or convert it to text"
        raise Refusal("malformed-row", f"{where}: the column {name} cannot be read", found=str(error), do=do) from None


class RowWriter:
    """Writes rows. The file appears when the ``with`` block ends without an error; otherwise nothing is left."""

    def __init__(self, path: Path) -> None:
        self.path, self.kind = path, kind(path)
        if self.kind == "parquet":
            optional("datasets", "Parquet")
        if not path.parent.is_dir():
            raise Refusal("no-folder", f"there is no folder {path.parent}")
        self.count = 0

    def __enter__(self) -> RowWriter:
        # the same name every time, so that the next run overwrites what a killed run left
        self._temporary = self.path.with_name(f".{self.path.name}.part")
        self._stream = self._temporary.open("wb")
        return self

    def write(self, line: bytes) -> None:
        """Write one row, which :func:`.files.dumps` has turned into a line."""
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
        """Let ``datasets`` write Parquet with our schema; on its own it would turn texts such as 2024-01-01 into times.

        Raises:
            Refusal: a column holds values of several types, or a type that Parquet does not have.
        """
        datasets = optional("datasets", "Parquet")
        target = self._temporary.with_name(self._temporary.name + ".parquet")
        try:
            with tempfile.TemporaryDirectory(prefix=f".{self.path.name}.", dir=self.path.parent) as cache:
                features = datasets.Features.from_arrow_schema(self._schema())
                dataset = datasets.Dataset.from_generator(
                    _written, features=features, cache_dir=cache, gen_kwargs={"path": self._temporary}
                )
                dataset.to_parquet(str(target))
            os.replace(target, self._temporary)
        except Refusal:
            raise
        except Exception as error:  # datasets and pyarrow raise errors of many kinds for values that do not fit
            cause = first_line(error.__cause__ or error)
            do = "one type of value per column, or --out FILE.jsonl"
            raise Refusal("no-parquet", f"{self.path}: Parquet cannot hold these rows", found=cause, do=do) from None
        finally:
            target.unlink(missing_ok=True)

    def _schema(self) -> Any:
        """The Arrow schema of all rows, unified over parts of ``PARQUET_ROWS`` rows."""
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
