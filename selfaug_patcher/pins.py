"""What is proved: the seams, and the table of the releases whose patched file was checked.

A row of ``patches/pins.txt`` is one file: the releases that have the file, the sha256 of the stock file, and the sha256
of the patched one. These hashes alone decide what a file is; a version is how people speak of it.
"""

from __future__ import annotations

import json
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO

from packaging.version import InvalidVersion, Version

from . import families, seam
from .errors import PatcherError, Problem
from .families import Target
from .seam import Seam

TABLE = "pins.txt"
MAX_BYTES = 1024 * 1024

VERSION = re.compile(r"\d{1,6}(?:\.\d{1,6}){0,4}(?:(?:a|b|rc)\d{1,4})?(?:\.post\d{1,4})?(?:\.dev\d{1,9})?")
_ROW = re.compile(r"(?P<target>\S+) +(?P<releases>\S.*?) +(?P<stock>[0-9a-f]{64}) +(?P<patched>[0-9a-f]{64})")
_RANGE = re.compile(r"((?:\d{1,6}\.){1,4})(\d{1,4})-(\d{1,4})")
_HEAD = """\
# Every file that was proved: the releases that have the file, the sha256 of the stock file, that of the patched one.
# `4.38.0-2` is 4.38.0, 4.38.1 and 4.38.2. `python -m selfaug_patcher pin` writes this table; docs/rebasing.md says how.
"""


@dataclass(frozen=True)
class Pin:
    """One release of one file. ``note``: empty, ``yanked`` or ``pre-release``."""

    target: str
    version: str
    stock_sha256: str
    patched_sha256: str
    note: str = ""


@dataclass(frozen=True)
class PinTable:
    """All pins, the targets in the order of `families.targets`, and of one target by version; and the seams, by the
    name of the package."""

    pins: tuple[Pin, ...]
    root: Path
    seams: Mapping[str, Seam] = field(repr=False)

    def of(self, target: str) -> tuple[Pin, ...]:
        return tuple(pin for pin in self.pins if pin.target == target)

    def pinned(self, target: str) -> tuple[Pin, ...]:
        """The pins of a target; of a family without any, those of its package."""
        package = target.split(":")[0]
        return self.of(target) or tuple(pin for pin in self.pins if pin.target.split(":")[0] == package)

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
        pins = self.pinned(target)
        pins = tuple(pin for pin in pins if not pin.note) or pins
        wanted = _version(version)
        below = [pin for pin in pins if wanted is None or Version(pin.version) <= wanted]
        return (below or pins[:1])[-1]

    def patched(self, target: Target, stock: bytes) -> bytes:
        """The stock file with the seam in it."""
        return seam.place(self.seams[target.package], target, stock)

    def stock(self, target: Target, patched: bytes) -> bytes:
        """The patched file without the seam."""
        return seam.remove(self.seams[target.package], target, patched)


def load(root: Path | None = None) -> PinTable:
    """Read the table and the seams. A family may have no row: then it is tried wherever it is installed.

    Args:
        root: their folder. Default: the one inside this package (pip-installed), else the checkout's.

    Raises:
        PatcherError: naming all problems, with the line of the table. Checked are the form of every row, that a release
            and a file are there once, that no hash is of two files, and that all are plain files in ``root``.
    """
    root = _root() if root is None else root
    problems: list[Problem] = []
    pins: list[Pin] = []
    for number, line in enumerate(_text(root, TABLE).split("\n"), 1):
        if line and not line.startswith("#"):
            try:
                pins += _row(line)
            except ValueError as error:
                problems.append(_problem(f"{TABLE}, line {number}: {error}", "a row as the others", line[:120]))
    if not pins and not problems:
        problems.append(_problem(f"{TABLE} has no rows", "a row for each file that was proved", "none"))
    seams = {}
    for package in dict.fromkeys(target.package for target in families.targets()):
        try:
            seams[package] = seam.parse(_text(root, f"{package}.seam"), f"{package}.seam")
        except PatcherError as error:
            problems += error.problems
    problems += contradictions(pins)
    if problems:
        raise PatcherError(*problems)
    return PinTable(tuple(sorted(pins, key=_order)), root, seams)


def contradictions(pins: Sequence[Pin]) -> list[Problem]:
    """What cannot be true of the rows of a table."""
    problems: list[Problem] = []
    files: dict[tuple[str, str], str] = {}
    versions: set[tuple[str, str]] = set()
    for pin in pins:
        where = f"{TABLE}, {pin.target} {pin.version}:"
        if (pin.target, pin.version) in versions:
            problems.append(_problem(f"{where} a release is there twice", "each release once", pin.version))
        versions.add((pin.target, pin.version))
        for sha256, other in ((pin.stock_sha256, pin.patched_sha256), (pin.patched_sha256, f"from {pin.stock_sha256}")):
            if files.setdefault((pin.target, sha256), other) != other:
                problems.append(
                    _problem(f"{where} one hash in two rows", "a stock and a patched file of its own", sha256)
                )
    return problems


def render(pins: Iterable[Pin]) -> str:
    """The text of the table: a line for each distinct file, so that a new release changes or adds one line."""
    files: dict[tuple[str, str, str], list[Pin]] = {}
    for pin in sorted(pins, key=_order):
        files.setdefault((pin.target, pin.stock_sha256, pin.patched_sha256), []).append(pin)
    lines = []
    for (target, stock, patched), same in files.items():
        lines.append(f"{target:<30}  {releases_text(same):<34}  {stock}  {patched}\n")
    return _HEAD + "\n" + "".join(lines)


def releases_text(pins: Sequence[Pin]) -> str:
    """Releases of one file, in the form of the table: ``4.45.2, 4.46.0 (yanked), 4.46.1-3``."""
    items: list[str] = []
    ends: list[int] = []
    for pin in pins:
        head, _, last = pin.version.rpartition(".")
        plain = pin.note == "" and last.isascii() and last.isdecimal() and bool(head)
        if plain and ends and items[-1].startswith(f"{head}.") and int(last) == ends[-1] + 1:
            items[-1], ends[-1] = f"{items[-1].partition('-')[0]}-{last}", int(last)
            continue
        items.append(f"{pin.version} (yanked)" if pin.note == "yanked" else pin.version)
        ends.append(int(last) if plain else -2)
    return ", ".join(items)


def print_table(as_json: bool = False, root: Path | None = None, stream: TextIO | None = None) -> int:
    """The verb ``pins``: every pinned release. Returns the exit code."""
    table = load(root)
    stream = stream or sys.stdout
    if as_json:
        stream.write(json.dumps({"pins": [asdict(pin) for pin in table.pins]}, indent=2) + "\n")
        return 0
    for target in families.targets():
        pins = table.of(target.name)
        rows = {pin.stock_sha256: [other for other in pins if other.stock_sha256 == pin.stock_sha256] for pin in pins}
        stream.write(f"{target.name}  {target.path}\n  {len(pins)} releases, {len(rows)} distinct files\n\n")
        stream.write(f"  {'stock':<14}{'patched':<14}releases\n")
        for same in rows.values():
            stream.write(f"  {same[0].stock_sha256[:12]:<14}{same[0].patched_sha256[:12]:<14}{releases_text(same)}\n")
        stream.write("\n")
    return 0


def _root() -> Path:
    here = Path(__file__).resolve().parent
    packaged = here / "patches"
    return packaged if (packaged / TABLE).is_file() else here.parent / "patches"


def _text(root: Path, name: str) -> str:
    path = root / name
    try:
        if path.resolve() != root.resolve() / name or not stat.S_ISREG(path.stat().st_mode):
            raise PatcherError(
                _problem(f"{name} is not a plain file in {root}", "a file, no link", f"{path.resolve()}")
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise PatcherError(_problem(f"{name} is too large", f"at most {MAX_BYTES} bytes", "more"))
        return data.decode("ascii")
    except (OSError, RuntimeError, UnicodeDecodeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise PatcherError(_problem(f"{name} cannot be read", f"a text in {root}", str(error)[:200])) from None


def _row(line: str) -> list[Pin]:
    match = _ROW.fullmatch(line)
    if match is None:
        raise ValueError("not a family, its releases and two sha256")
    if match["target"] not in {target.name for target in families.targets()}:
        raise ValueError(f"no family of the name {match['target'][:60]}")
    pins = []
    for item in match["releases"].split(", "):
        version, yanked, rest = item.partition(" (yanked)")
        bounds = _RANGE.fullmatch(version)
        if bounds and (yanked or int(bounds[3]) <= int(bounds[2])):
            raise ValueError(f"{item[:60]} is no range of releases")
        numbers = range(int(bounds[2]), int(bounds[3]) + 1) if bounds else ()
        for release in [f"{bounds[1]}{number}" for number in numbers] if bounds else [version]:
            if not VERSION.fullmatch(release) or rest:
                raise ValueError(f"{item[:60]!r} is not a release")
            note = "yanked" if yanked else "pre-release" if Version(release).is_prerelease else ""
            pins.append(Pin(match["target"], release, match["stock"], match["patched"], note))
    return pins


def _order(pin: Pin) -> tuple[int, Version]:
    return [target.name for target in families.targets()].index(pin.target), Version(pin.version)


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _problem(what: str, expected: str, actual: str) -> Problem:
    return Problem("bad-pins", what, expected, actual, "take the patches/ folder from a fresh checkout of SelfAug")
