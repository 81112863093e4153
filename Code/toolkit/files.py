"""Users' text and JSON files: UTF-8 with or without a byte-order mark, checked JSON values, and hashes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .errors import Refusal

UTF8_MARK = "\ufeff"
OTHER_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
DEEPEST = 100  # levels of lists and objects in a row


@contextmanager
def opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file and skip a byte-order mark. ``newline`` means the same as for :func:`open`.

    Raises:
        Refusal: the file does not exist, or is not UTF-8. The refusal names file and line.
    """
    if not path.is_file():
        raise Refusal("no-file", f"there is no file {path}", found="a folder" if path.is_dir() else "")
    with path.open("rb") as stream:
        start = stream.read(4096)
    mark = next((name for mark, name in OTHER_MARKS.items() if start.startswith(mark)), None)
    if mark or b"\0" in start:
        kind = f"{mark}, by its byte-order mark" if mark else "zero bytes: UTF-16 without a mark, or not a text"
        do = f"iconv -f {mark or 'UTF-16LE'} -t UTF-8"
        raise Refusal("not-text", f"{path} cannot be read", "UTF-8", f"{path}:1: {kind}", do)
    with path.open(encoding="utf-8-sig", newline=newline) as text:
        try:
            yield text
        except UnicodeDecodeError:
            raise _not_utf8(path) from None


def _not_utf8(path: Path) -> Refusal:
    """Search for the line with the error: the decoder reads ahead, so its position says nothing."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return Refusal("not-text", f"{path} cannot be read", "UTF-8", f"{path}:{number}: {error}")
    return Refusal("not-text", f"{path} changed while it was read")


def read_text(path: Path) -> str:
    """The whole text of a file. Raises the refusals of :func:`opened`."""
    with opened(path) as text:
        return text.read().lstrip(UTF8_MARK)


def read_start(path: Path) -> str:
    """The first character that is neither white space nor a byte-order mark. Raises the refusals of :func:`opened`."""
    with opened(path) as text:
        return next((content[0] for line in text if (content := _content(line))), "")


def text_lines(path: Path) -> list[tuple[int, str]]:
    """(number from 1, line) for the lines of a plain text that are not blank. Every line may begin with a byte-order
    mark, since people join files. Raises the refusals of :func:`opened`.
    """
    numbered = ((number, _content(line)) for number, line in enumerate(read_text(path).splitlines(), 1))
    return [(number, line) for number, line in numbered if line]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, line) for the lines of a JSONL file that are not blank. Only "\\n" ends a line, since JSON
    strings may hold other line ends. Raises the refusals of :func:`opened`.
    """
    with opened(path, newline="\n") as text:
        for number, line in enumerate(text, 1):
            content = _content(line)
            if content:
                yield number, content


def _content(line: str) -> str:
    return line.strip().lstrip(UTF8_MARK).strip()


def read_json(path: Path) -> Any:
    """The JSON value in a file.

    Raises:
        Refusal: those of :func:`opened`, or the file is not JSON. The refusal names file and line.
    """
    try:
        return parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise Refusal("no-json", f"{path}:{error.lineno}: expected JSON, found: {error.msg}") from None
    except ValueError as error:
        raise Refusal("no-json", f"{path}: {error}") from None


def parse_json(text: str) -> Any:
    """The JSON value in ``text``, checked by :func:`check_text`.

    Raises:
        ValueError: ``text`` is not JSON, an object has a key twice, or a string cannot be written to a file.
    """
    value = DECODER.decode(text)
    check_text(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return content


class Decoder(json.JSONDecoder):
    """Python's decoder, which raises ValueError for each text that it cannot read. Python's own raises RecursionError,
    too, for lists and objects that are nested too deep for its stack, and few callers think of that.
    """

    def raw_decode(self, s: str, idx: int = 0) -> tuple[Any, int]:
        try:
            return super().raw_decode(s, idx)
        except RecursionError:
            raise ValueError(f"lists or objects nested deeper than {DEEPEST} levels") from None


DECODER = Decoder(object_pairs_hook=_object)


def check_text(value: Any, place: str = "", depth: int = 0) -> None:
    """Raise ValueError, which names the column, for half a surrogate pair. UTF-8 and tokenizers cannot hold one."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(value[error.start]):04x}"
            raise ValueError(f"{place or 'the text'} holds {half}, half of a character (a surrogate without the other "
                             "one): take it out, or write both halves") from None  # fmt: skip
        return
    if depth > DEEPEST:
        raise ValueError(f"{place} is nested deeper than {DEEPEST} levels")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str):
                raise ValueError(f"{place} has the key {name!r}: expected a text")
            check_text(name, f"a key in {place or 'the row'}")
            check_text(inner, f"{place}.{name}" if place else name, depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            check_text(inner, f"{place}[{index}]", depth + 1)


def dumps(value: Any) -> bytes:
    """``value`` as one line of JSON.

    Raises:
        TypeError, ValueError: JSON cannot represent a part of ``value``. The error names the column.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        place, kind = next(_not_json(value, ""), ("the value", "of a type"))
        what = f"{place} is {kind}, which JSON cannot hold: remove the value, or convert it to text"
        raise type(error)(what) from None
    try:
        return text.encode()
    except UnicodeEncodeError:  # file names may hold half a character; rows cannot, see check_text
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


def sha256(*files: Path) -> str:
    """The sha256 over the bytes of the files, one after another, read in blocks."""
    whole = hashlib.sha256()
    for file in files:
        add_to_hash(whole, file)
    return whole.hexdigest()


def add_to_hash(whole: Any, file: Path) -> None:
    """Update a hash of :mod:`hashlib` with the bytes of a file."""
    with file.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            whole.update(block)
