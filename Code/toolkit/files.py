"""Text files and JSON that users give: UTF-8 with or without a byte-order mark, and values that a file can hold."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from .errors import Refusal

UTF8_MARK = "\ufeff"
OTHER_MARKS = {  # the longer ones first: UTF-32's begins with UTF-16's
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
DEEPEST = 100  # levels of lists and objects in a row


@contextmanager
def opened(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """``path`` as text, without the byte-order mark that it may begin with. ``newline``: as of :func:`open`.

    Raises:
        Refusal: there is no such file, or it is not UTF-8; with file and line.
    """
    if not path.is_file():
        raise Refusal("no-file", f"there is no file {path}", found="a folder" if path.is_dir() else "")
    with path.open("rb") as stream:
        start = stream.read(4096)
    mark = next((name for mark, name in OTHER_MARKS.items() if start.startswith(mark)), None)
    if mark or b"\0" in start:
        kind = f"{mark}, by its byte-order mark" if mark else "zero bytes: UTF-16 without a mark, or no text at all"
        do = f"iconv -f {mark or 'UTF-16LE'} -t UTF-8"
        raise Refusal("not-text", f"{path} cannot be read", "UTF-8", f"{path}:1: {kind}", do)
    with path.open(encoding="utf-8-sig", newline=newline) as text:
        try:
            yield text
        except UnicodeDecodeError:
            raise _not_utf8(path) from None


def _not_utf8(path: Path) -> Refusal:
    """A decoder reads ahead, so the line with the error is looked for here."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return Refusal("not-text", f"{path} cannot be read", "UTF-8", f"{path}:{number}: {error}")
    return Refusal("not-text", f"{path} changed while it was read")


def read_text(path: Path) -> str:
    """The whole of a text file. Raises: as :func:`opened`."""
    with opened(path) as text:
        return text.read().lstrip(UTF8_MARK)


def text_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a plain text that are not blank, each with its number from 1. Files that were joined may have a
    byte-order mark before any line. Raises: as :func:`opened`.
    """
    found = ((number, _content(line)) for number, line in enumerate(read_text(path).splitlines(), 1))
    return [(number, line) for number, line in found if line]


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Each line of JSONL that is not blank, with its number from 1; a line ends where "\\n" is, as JSON's strings may
    hold the other line ends. Raises: as :func:`opened`.
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
        Refusal: as :func:`opened`, or the file is no JSON; with file and line.
    """
    try:
        return parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise Refusal("no-json", f"{path}:{error.lineno}: no JSON: {error.msg}") from None
    except ValueError as error:
        raise Refusal("no-json", f"{path}: {error}") from None


def parse_json(text: str) -> Any:
    """The JSON value in ``text``, checked by :func:`check_text`.

    Raises:
        ValueError: no JSON, an object with a key twice, or text that no file can hold.
    """
    try:
        value = DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"lists or objects nested deeper than {DEEPEST} levels") from None
    check_text(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return content


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def check_text(value: Any, place: str = "", depth: int = 0) -> None:
    """Raise ValueError, with the column, for half a surrogate pair: no UTF-8 file and no tokenizer can hold one."""
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
