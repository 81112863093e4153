"""The pin table: which releases have a verified patch, by the content of the file that it changes.

A pin says: the stock file with this sha256, patched with this patch file, gives a file with that sha256. What a file
is gets decided by these hashes and by nothing else; the version is how people speak of it.
"""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from packaging.version import InvalidVersion, Version

from .errors import PatcherError, Problem
from .pairs import warnings
from .udiff import MAX_PATCH_BYTES, Patch, parse

__all__ = [
    "NOTES", "TARGETS", "VERSION", "Pin", "PinTable", "Target", "contradictions", "load", "print_table", "read_patch",
    "render", "warnings",
]  # fmt: skip

FORMAT = 1
NOTES = ("", "yanked", "pre-release")
MAX_TABLE_BYTES = 1024 * 1024

VERSION = re.compile(r"\d{1,6}(?:\.\d{1,6}){0,4}(?:(?:a|b|rc)\d{1,4})?(?:\.post\d{1,4})?(?:\.dev\d{1,9})?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATCH = re.compile(r"[a-z0-9_]{1,40}-[0-9a-z.]{1,40}\.patch")
_FIELDS = {"version", "note", "patch", "stock_sha256", "patched_sha256"}


@dataclass(frozen=True)
class Target:
    """A file that gets patched. ``path`` is relative to the site directory, with forward slashes."""

    name: str
    package: str
    path: str


TARGETS = (
    Target("transformers:qwen2", "transformers", "transformers/models/qwen2/modeling_qwen2.py"),
    Target("peft:lora", "peft", "peft/tuners/lora/layer.py"),
)


@dataclass(frozen=True)
class Pin:
    """One release: its stock file, the patch (a path below ``patches/``) and the result. ``note`` is one of `NOTES`."""

    target: str
    version: str
    stock_sha256: str
    patch: str
    patched_sha256: str
    note: str = ""


@dataclass(frozen=True)
class PinTable:
    """All pins, the targets in the order of `TARGETS`, and of one target by version."""

    pins: tuple[Pin, ...]
    root: Path
    patches: dict[str, Patch] = field(repr=False)

    def of(self, target: str) -> tuple[Pin, ...]:
        return tuple(pin for pin in self.pins if pin.target == target)

    def by_stock(self, target: str, sha256: str) -> Pin | None:
        """The first release whose stock file has this content, whatever the version of the one at hand says."""
        return next((pin for pin in self.of(target) if pin.stock_sha256 == sha256), None)

    def by_patched(self, target: str, sha256: str) -> Pin | None:
        """The first release whose patched file has this content."""
        return next((pin for pin in self.of(target) if pin.patched_sha256 == sha256), None)

    def by_version(self, target: str, version: str) -> Pin | None:
        wanted = _version(version)
        return next((pin for pin in self.of(target) if wanted is not None and Version(pin.version) == wanted), None)

    def nearest(self, target: str, version: str) -> Pin:
        """The release to take instead: the newest one not above ``version``, else the oldest; never a yanked one or a
        pre-release, unless there is nothing else. For a version that cannot be read, the newest."""
        pins = self.of(target)
        pins = tuple(pin for pin in pins if not pin.note) or pins
        wanted = _version(version)
        below = [pin for pin in pins if wanted is None or Version(pin.version) <= wanted]
        return below[-1] if below else pins[0]

    def patch(self, pin: Pin) -> Patch:
        return self.patches[pin.patch]

    def applies_to(self, patch: str) -> str:
        """The ``Applies-To`` header that fits the pins: ``transformers 4.37.0-4.40.2, 4.42.0``."""
        pins = self.of(next(pin.target for pin in self.pins if pin.patch == patch))
        ranges: list[list[str]] = []
        previous = ""
        for pin in pins:
            if pin.patch == patch:
                if previous == patch:
                    ranges[-1][1:] = [pin.version]
                else:
                    ranges.append([pin.version])
            previous = pin.patch
        return patch.split("/")[0] + " " + ", ".join("-".join(ends) for ends in ranges)


def load(root: Path | None = None) -> PinTable:
    """Read ``pins.json`` and every patch that it names.

    Args:
        root: the folder of ``pins.json``. Default: the one inside this package (pip-installed), else the checkout's.

    Raises:
        PatcherError: naming all problems. Checked are the form of every field, that versions are unique and ascending,
            that one content has one patch and one result, and that patches are plain files below ``root``, of the
            target that names them.
    """
    root = _root() if root is None else root
    data = _data(root)
    problems: list[Problem] = []
    pins: list[Pin] = []
    for target in TARGETS:
        rows = data[target.name]
        if not isinstance(rows, list) or not rows:
            problems.append(_problem(f"pins.json has no rows for {target.name}", "a list", repr(rows)[:60]))
            continue
        found = [_pin(target, row, problems) for row in rows]
        pins += [pin for pin in found if pin]
        problems += contradictions([pin for pin in found if pin])
    patches = _patches(root, pins, problems)
    if problems:
        raise PatcherError(*problems)
    return PinTable(tuple(pins), root, patches)


def read_patch(root: Path, name: str) -> Patch:
    """The patch file ``root/name``, parsed."""
    try:
        return parse(_read(root, name, MAX_PATCH_BYTES).decode(), name)
    except UnicodeDecodeError as error:
        raise PatcherError(_problem(f"{name} is not text", "UTF-8", str(error)[:100])) from None


def render(pins: Iterable[Pin]) -> str:
    """``pins.json``: one line per release, so that a diff of it reads as a list of releases."""
    pins = tuple(pins)
    blocks = []
    for target in TARGETS:
        rows = []
        for pin in sorted((pin for pin in pins if pin.target == target.name), key=lambda pin: Version(pin.version)):
            row = {"version": pin.version, "note": pin.note, "patch": pin.patch.split("/")[1]}
            row.update(stock_sha256=pin.stock_sha256, patched_sha256=pin.patched_sha256)
            rows.append("    " + json.dumps(row))
        blocks.append(f"  {json.dumps(target.name)}: [\n" + ",\n".join(rows) + "\n  ]")
    return f'{{\n  "format": {FORMAT},\n' + ",\n".join(blocks) + "\n}\n"


def print_table(as_json: bool = False, root: Path | None = None, stream: TextIO | None = None) -> int:
    """The verb ``pins``: every pinned release. Returns the exit code."""
    table = load(root)
    stream = stream or sys.stdout
    if as_json:
        rows = [asdict(pin) for pin in table.pins]
        stream.write(json.dumps({"pins": rows, "patches": len(table.patches)}, indent=2) + "\n")
        return 0
    for target in TARGETS:
        pins = table.of(target.name)
        files = len({pin.stock_sha256 for pin in pins})
        patches = len({pin.patch for pin in pins})
        stream.write(
            f"{target.name}  {target.path}\n  {len(pins)} releases, {files} distinct files, {patches} patches\n\n"
        )
        stream.write(f"  {'release':<11}{'stock':<14}{'patched':<14}{'patch':<32}note\n")
        for pin in pins:
            name = pin.patch.split("/")[1]
            row = f"  {pin.version:<11}{pin.stock_sha256[:12]:<14}{pin.patched_sha256[:12]:<14}{name:<32}{pin.note}"
            stream.write(row.rstrip() + "\n")
        stream.write("\n")
    return 0


def _root() -> Path:
    here = Path(__file__).resolve().parent
    packaged = here / "patches"
    return packaged if (packaged / "pins.json").is_file() else here.parent / "patches"


def _read(root: Path, name: str, limit: int) -> bytes:
    path = root / name
    try:
        if path.resolve() != root.resolve() / name or not stat.S_ISREG(path.stat().st_mode):
            raise PatcherError(
                _problem(f"{name} is not a plain file in {root}", "a file, no link", f"{path.resolve()}")
            )
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise PatcherError(_problem(f"{name} cannot be read", f"a file in {root}", str(error))) from None
    if len(data) > limit:
        raise PatcherError(_problem(f"{name} is too large", f"at most {limit} bytes", "more"))
    return data


def _data(root: Path) -> dict[str, Any]:
    try:
        data = json.loads(_read(root, "pins.json", MAX_TABLE_BYTES), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        problem = _problem("pins.json is not JSON", "the file of a SelfAug checkout", str(error)[:200])
        raise PatcherError(problem) from None
    if not isinstance(data, dict) or set(data) != {"format", *(target.name for target in TARGETS)}:
        found = f"the keys {sorted(data)[:5]}" if isinstance(data, dict) else type(data).__name__
        expected = "the keys 'format' and " + ", ".join(repr(target.name) for target in TARGETS)
        raise PatcherError(_problem("pins.json is not a pin table", expected, found[:200]))
    if data["format"] != FORMAT:
        found = repr(data["format"])[:40]
        raise PatcherError(_problem("pins.json has a format that this SelfAug does not read", f"{FORMAT}", found))
    return data


def _pin(target: Target, row: Any, problems: list[Problem]) -> Pin | None:
    where = f"in a row for {target.name}"
    if not isinstance(row, dict) or set(row) != _FIELDS or not all(isinstance(value, str) for value in row.values()):
        problems.append(_problem(f"pins.json has another form {where}", f"texts {sorted(_FIELDS)}", repr(row)[:120]))
        return None
    forms = {"version": VERSION, "patch": _PATCH, "stock_sha256": _SHA256, "patched_sha256": _SHA256}
    wrong = [name for name, form in forms.items() if not form.fullmatch(row[name])]
    wrong += ["note"] if row["note"] not in NOTES else []
    problems += [_problem(f"pins.json has a bad {name} {where}", f"a {name}", repr(row[name])[:80]) for name in wrong]
    return None if wrong else Pin(target=target.name, **{**row, "patch": f"{target.package}/{row['patch']}"})


def contradictions(pins: list[Pin]) -> list[Problem]:
    """What cannot be true of one target's rows: order, and that a file has one outcome and an outcome one file."""
    problems: list[Problem] = []
    outcomes: dict[str, tuple[str, str]] = {}
    origins: dict[str, str] = {}
    for index, pin in enumerate(pins):
        where = f"pins.json, {pin.target} {pin.version}:"
        outcome = (pin.patch, pin.patched_sha256)
        if index and Version(pins[index - 1].version) >= Version(pin.version):
            problems.append(_problem(f"{where} out of order or twice", "ascending versions", pins[index - 1].version))
        if outcomes.setdefault(pin.stock_sha256, outcome) != outcome:
            problems.append(_problem(f"{where} one stock file, two outcomes", "one outcome", pin.stock_sha256))
        if origins.setdefault(pin.patched_sha256, pin.stock_sha256) != pin.stock_sha256:
            problems.append(_problem(f"{where} two stock files, one outcome", "one stock file", pin.patched_sha256))
    for sha256 in sorted(set(outcomes) & set(origins)):
        problems.append(_problem("pins.json: one file is both stock and patched", "two hashes that differ", sha256))
    return problems


def _patches(root: Path, pins: list[Pin], problems: list[Problem]) -> dict[str, Patch]:
    patches: dict[str, Patch] = {}
    paths = {target.name: target.path for target in TARGETS}
    for name, target in dict.fromkeys((pin.patch, pin.target) for pin in pins):
        try:
            patches[name] = read_patch(root, name)
        except PatcherError as error:
            problems += error.problems
            continue
        if patches[name].target != paths[target]:
            problems.append(_problem(f"{name} is not a patch for {target}", paths[target], patches[name].target))
    return patches


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _problem(what: str, expected: str, found: str) -> Problem:
    return Problem("bad-pins", what, expected, found, "take the patches/ folder from a fresh checkout of SelfAug")
