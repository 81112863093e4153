"""Unified diffs, placed by their text alone: bytes in, bytes out, no file system.

A hunk is placed where its pre-image stands, whatever line that is: line numbers in the patch are only for readers
and for ``patch -p1``. In exchange the match must be exact, byte for byte, and the only one in the file; there is no
fuzz. `apply` also refuses a result that `reverse` could not undo, so that the two are always inverse.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import PatcherError, Problem

MAX_PATCH_BYTES = 16 * 1024
MAX_FILE_BYTES = 1024 * 1024

_HEADER = re.compile(r"([A-Z][A-Za-z-]{0,40}): (\S.*)")
_HUNK = re.compile(r"@@ -\d{1,7}(?:,(\d{1,7}))? \+\d{1,7}(?:,(\d{1,7}))? @@(?: .*)?")
_TARGET = re.compile(r"[A-Za-z0-9_]+(?:/[A-Za-z0-9_]+)*\.py")
_UNWANTED = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_LF = b"\n"
_NO_NEWLINE = "\\ No newline at end of file"


@dataclass(frozen=True)
class Hunk:
    """Consecutive lines, with their line ends, before and after the change."""

    before: tuple[bytes, ...]
    after: tuple[bytes, ...]


@dataclass(frozen=True)
class Patch:
    """A parsed patch file. ``target`` is the path of the one file it changes, relative to the site directory."""

    name: str
    headers: dict[str, str]
    target: str
    hunks: tuple[Hunk, ...]


def parse(text: str, name: str) -> Patch:
    """Read a patch file: headers (``Key: value``, folded lines indented), then one file's unified diff.

    Raises:
        PatcherError: anything but that. Names of files other than ``a/PATH.py`` and ``b/PATH.py`` with one plain
            relative PATH are refused, and so are hunks without context, without a change, or of the wrong length.
    """
    if len(text) > MAX_PATCH_BYTES:
        raise _bad(name, "is too long", f"at most {MAX_PATCH_BYTES} characters", f"{len(text)}")
    lines = text.split("\n")
    if lines.pop() != "":
        raise _bad(name, "is cut off", "a line end after the last line", "none")
    for number, line in enumerate(lines, 1):
        if _UNWANTED.search(line):
            raise _bad(name, f"has a control character in line {number}", "text with \\n line ends", repr(line[:60]))
    start = next((index for index, line in enumerate(lines) if line.startswith("--- ")), None)
    if start is None:
        raise _bad(name, "is not a unified diff", "a line that begins with '--- a/'", "none")
    return Patch(
        name=name,
        headers=_headers(lines[:start], name),
        target=_target(lines[start : start + 2], name),
        hunks=_hunks(lines[start + 2 :], name),
    )


def apply(patch: Patch, stock: bytes) -> bytes:
    """The patched file. Every pre-image must stand in ``stock`` exactly once, in the order of the hunks.

    Raises:
        PatcherError: a hunk is not found, found twice, out of order, or the result could not be reversed.
    """
    patched = _replace(patch, stock, [(hunk.before, hunk.after) for hunk in patch.hunks])
    try:
        again = reverse(patch, patched)
    except PatcherError:
        again = None
    if again != stock:
        raise _unfit(
            patch, 1, "fits, but could not be reversed", "every post-image exactly once in the result", "another result"
        )
    return patched


def reverse(patch: Patch, patched: bytes) -> bytes:
    """The stock file, from a patched one: `apply` with the two sides of every hunk exchanged."""
    return _replace(patch, patched, [(hunk.after, hunk.before) for hunk in patch.hunks])


def _replace(patch: Patch, data: bytes, pairs: Sequence[tuple[tuple[bytes, ...], tuple[bytes, ...]]]) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise _unfit(patch, 1, "is for a source file", f"at most {MAX_FILE_BYTES} bytes", f"{len(data)}")
    result: list[bytes] = []
    done = 0
    for number, (old, new) in enumerate(pairs, 1):
        block = b"".join(old)
        places = _places(block, data)
        if len(places) != 1:
            text = "".join("\n    | " + line.rstrip(_LF).decode("utf-8", "replace") for line in old)
            what = "is in the file more than once" if places else "is not in the file"
            found = " and ".join(f"line {data.count(_LF, 0, place) + 1}" for place in places) or "nowhere"
            raise _unfit(patch, number, what, f"exactly once, byte for byte:{text}", found)
        if places[0] < done:
            raise _unfit(
                patch, number, "comes before the one above it", "the hunks in the order of the file", "another order"
            )
        result += [data[done : places[0]], *new]
        done = places[0] + len(block)
    return b"".join([*result, data[done:]])


def _places(block: bytes, data: bytes) -> list[int]:
    """Where the whole lines of ``block`` stand in ``data``: the first two places at most, all that uniqueness asks."""
    if not block.endswith(_LF):  # a block without a line end can only be the end of the file
        return [len(data) - len(block)] if (_LF + data).endswith(_LF + block) else []
    places: list[int] = []
    place = -1
    while len(places) < 2:
        place = (_LF + data).find(_LF + block, place + 1)
        if place < 0:
            break
        places.append(place)
    return places


def _headers(lines: Sequence[str], name: str) -> dict[str, str]:
    headers: dict[str, str] = {}
    key = ""
    for number, line in enumerate(lines, 1):
        match = _HEADER.fullmatch(line)
        if match and match[1] not in headers:
            key = match[1]
            headers[key] = match[2].rstrip()
        elif key and line.startswith(" ") and line.strip():
            headers[key] += " " + line.strip()
        elif line:
            raise _bad(
                name,
                f"has a header that cannot be read in line {number}",
                "'Key: value', each key once",
                repr(line[:60]),
            )
    return headers


def _target(lines: Sequence[str], name: str) -> str:
    if len(lines) == 2 and lines[0].startswith("--- a/") and lines[1].startswith("+++ b/"):
        old, new = lines[0][6:], lines[1][6:]
        if old == new and _TARGET.fullmatch(old):
            return old
    found = " / ".join(repr(line[:80]) for line in lines)
    raise _bad(name, "does not name one file inside a package", "'--- a/PATH.py' and '+++ b/PATH.py', one PATH", found)


def _hunks(lines: Sequence[str], name: str) -> tuple[Hunk, ...]:
    hunks: list[Hunk] = []
    index = 0
    while index < len(lines):
        match = _HUNK.fullmatch(lines[index])
        if not match:
            raise _bad(name, "has text where a hunk should begin", "'@@ -L,N +L,N @@'", repr(lines[index][:60]))
        left, right = (1 if count is None else int(count) for count in match.groups())
        before: list[bytes] = []
        after: list[bytes] = []
        sides: list[list[bytes]] = []
        index += 1
        while index < len(lines) and not lines[index].startswith("@@"):
            line, mark = lines[index], lines[index][:1]
            if line == _NO_NEWLINE and sides:
                for side in sides:
                    side[-1] = side[-1].rstrip(_LF)
                sides = []
            elif mark in (" ", "-", "+"):
                sides = {" ": [before, after], "-": [before], "+": [after]}[mark]
                for side in sides:
                    side.append(line[1:].encode() + _LF)
            else:
                raise _bad(
                    name, "has a line that is neither context nor change", "' ', '-' or '+' first", repr(line[:60])
                )
            index += 1
        hunks.append(_hunk(before, after, left, right, f"hunk {len(hunks) + 1} of {name}"))
    if not hunks:
        raise _bad(name, "changes nothing", "at least one hunk", "none")
    return tuple(hunks)


def _hunk(before: list[bytes], after: list[bytes], left: int, right: int, name: str) -> Hunk:
    if (len(before), len(after)) != (left, right):
        raise _bad(
            name, "is not as long as it says", f"{left} lines before, {right} after", f"{len(before)}, {len(after)}"
        )
    if before == after:
        raise _bad(name, "changes nothing", "a '-' or '+' line", "context only")
    if not before or not after:
        raise _bad(name, "has no context", "a line before and a line after the change", "none on one side")
    for side in (before, after):
        if any(not line.endswith(_LF) for line in side[:-1]):
            raise _bad(name, "goes on after the end of the file", "the line without a line end last", "it is not")
    return Hunk(tuple(before), tuple(after))


def _bad(name: str, what: str, expected: str, found: str) -> PatcherError:
    do = "take the patches/ folder from a fresh checkout of SelfAug"
    return PatcherError(Problem("bad-patch", f"{name} {what}", expected, found, do))


def _unfit(patch: Patch, number: int, what: str, expected: str, found: str) -> PatcherError:
    do = "take the patches/ folder from a fresh checkout of SelfAug, or make a patch that fits: docs/rebasing.md"
    what = f"hunk {number} of {patch.name} {what}"
    return PatcherError(Problem("patch-does-not-fit", what, expected, found, do))
