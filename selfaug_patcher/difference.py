"""Unified diffs for people to read, and what a stock file looked like where only its edited form is left."""

from __future__ import annotations

import contextlib
import difflib

from .errors import PatcherError
from .pins import PinTable
from .state import TargetState
from .store import digest, read

SHOWN_LINES = 60


def unified(before: bytes, after: bytes, path: str) -> str:
    """A unified diff with ``a/`` and ``b/`` names; empty if nothing differs."""
    left, right = (content.decode("utf-8", "replace").splitlines(keepends=True) for content in (before, after))
    lines = difflib.unified_diff(left, right, f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def stock_file(target: TargetState) -> bytes | None:
    """The stock file of a target that was edited after `install`, where the original is still kept."""
    if target.original is None or target.package.site is None:
        return None
    kept = target.store.original(target.original.stock_sha256)
    return read(kept) if kept else None


def explain(target: TargetState, table: PinTable) -> str:
    """How a modified file differs from what it should be, in a form that fits into an error message."""
    text = target.content
    for what, form in (
        ("line ends (CRLF instead of LF)", text.replace(b"\r\n", b"\n")),
        ("a byte order mark at its start", text[3:] if text.startswith(b"\xef\xbb\xbf") else text),
        ("white space at line ends", b"\n".join(line.rstrip() for line in text.split(b"\n"))),
        ("the line end of its last line", text + b"\n"),
        ("empty lines at its end", text.rstrip(b"\n") + b"\n"),
    ):
        if form != text and _known(target, table, digest(form)):
            return f"{target.path}\nonly {what} differ" + ("s" if what.startswith(("a ", "the ")) else "")
    reference, of = stock_file(target), "stock"
    if reference is not None and target.edited_after_install():
        with contextlib.suppress(PatcherError):
            reference, of = target.patched_content(table, reference), "patched"
    if reference is None:
        return f"{target.path}\nsha256 {target.sha256}"
    lines = unified(reference, target.content, target.target.path).splitlines()
    more = [f"... and {len(lines) - SHOWN_LINES} lines more"] if len(lines) > SHOWN_LINES else []
    return "\n".join([f"{target.path}, compared with the {of} file:", *lines[:SHOWN_LINES], *more])


def _known(target: TargetState, table: PinTable, sha256: str) -> bool:
    name = target.target.name
    listed = target.package.record.get(target.target.path) == sha256
    return listed or (table.by_stock(name, sha256) or table.by_patched(name, sha256)) is not None
