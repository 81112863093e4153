"""The receipt: what `install` did in one site directory, and therefore what `revert` may undo there.

It names targets, plain file names and, in the runtime, one folder before a file name: whatever a receipt says, it
cannot point outside the two packages and the runtime's folder. Whoever reads one from disk gets it checked in full, or
an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from . import json_text
from .errors import PatcherError, Problem
from .families import targets

FORMAT = 1
MAX_BYTES = 256 * 1024

SHA256 = re.compile(r"[0-9a-f]{64}")
PACKAGE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,60}")  # a folder in selfaug/; not __pycache__
MODULE = re.compile(rf"(?:{PACKAGE.pattern}/)?[A-Za-z_][A-Za-z0-9_]{{0,60}}\.py")
BYTECODE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,60}\.[A-Za-z0-9_.-]{1,60}\.pyc")
PROVED_WITH = ("transformers", "peft", "torch", "python")
_VERSION = re.compile(r"[A-Za-z0-9_.!+-]{0,80}")


@dataclass(frozen=True)
class Original:
    """One patched target: its release, the hashes before and after, and the bytecode that lay beside it.

    ``proved``, where the release is not pinned: the versions with which the target was proved on this machine.
    """

    version: str
    stock_sha256: str
    patched_sha256: str
    bytecode: Mapping[str, str] = field(default_factory=dict)
    proved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipt:
    """What `install` did in a site directory. ``runtime`` maps each file of ``selfaug/``, as
    ``module.py`` or ``package/module.py``, to its sha256."""

    selfaug: str
    targets: Mapping[str, Original]
    runtime: Mapping[str, str]

    def hashes(self) -> set[str]:
        """The content of every original that this receipt needs kept."""
        kept = {original.stock_sha256 for original in self.targets.values()}
        return kept.union(*(original.bytecode.values() for original in self.targets.values()))


def encode(receipt: Receipt) -> bytes:
    data: dict[str, Any] = {"format": FORMAT, **asdict(receipt)}
    for target in data["targets"].values():
        if not target["proved"]:
            del target["proved"]  # an earlier SelfAug, which knows only pinned releases, then reads it, too
    return (json.dumps(data, indent=2, sort_keys=True) + "\n").encode()


def decode(content: bytes, path: str) -> Receipt:
    """Read a receipt.

    Raises:
        PatcherError: it is anything but what `encode` writes.
    """
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        data = json_text.parse(content)
        _keys(data, {"format", "selfaug", "targets", "runtime"})
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r:.40}")
        names = {target.name for target in targets()}
        if not isinstance(data["targets"], dict) or not set(data["targets"]) <= names:
            raise ValueError("targets of other names")
        return Receipt(
            selfaug=_text(data["selfaug"], _VERSION),
            targets={name: _original(entry) for name, entry in data["targets"].items()},
            runtime=_hashes(data["runtime"], MODULE),
        )
    except ValueError as error:
        raise damaged(path, str(error)[:200]) from None


def damaged(path: str, seen: str) -> PatcherError:
    return PatcherError(
        Problem(
            id="damaged-receipt",
            what="SelfAug's own record of this environment cannot be trusted",
            expected="a file written by selfaug_patcher",
            found=f"{path}: {seen}",
            do="move that folder away, then run revert: it needs the record only for files that were edited",
        )
    )


def _original(entry: Any) -> Original:
    _keys(entry, {"version", "stock_sha256", "patched_sha256", "bytecode"}, optional="proved")
    proved = entry.get("proved", {})
    if not isinstance(proved, dict) or not set(proved) <= set(PROVED_WITH):
        raise ValueError(f"proved with {proved!r:.80}")
    return Original(
        version=_text(entry["version"], _VERSION),
        stock_sha256=_text(entry["stock_sha256"], SHA256),
        patched_sha256=_text(entry["patched_sha256"], SHA256),
        bytecode=_hashes(entry["bytecode"], BYTECODE),
        proved={name: _text(proved[name], _VERSION) for name in PROVED_WITH if name in proved},
    )


def _keys(data: Any, keys: set[str], optional: str = "") -> None:
    if not isinstance(data, dict) or set(data) - {optional} != keys:
        raise ValueError(f"not an object with the keys {', '.join(sorted(keys))}")


def _text(value: Any, form: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError(f"{value!r:.80} is not of the form {form.pattern}")
    return value


def _hashes(data: Any, names: re.Pattern[str]) -> dict[str, str]:
    if not isinstance(data, dict) or len(data) > 1000:
        raise ValueError("not an object of file names and hashes")
    return {_text(name, names): _text(sha256, SHA256) for name, sha256 in data.items()}
