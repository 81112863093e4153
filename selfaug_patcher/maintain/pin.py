"""The verb ``pin``: the files of a release become rows of the pin table. `docs/rebasing.md` walks through it.

Whatever `pin` writes is under version control, or in the wheel cache; no environment is touched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from email.parser import HeaderParser
from pathlib import Path
from typing import TextIO
from zipfile import BadZipFile, ZipFile

from packaging.version import InvalidVersion, Version

from ..errors import UNSUPPORTED, USAGE, PatcherError, Problem, leaving
from ..families import LAYER, MODELS, Target
from ..pins import TABLE, VERSION, Pin, PinTable, contradictions, load, render
from ..store import digest
from . import wheels
from .changes import changes


@dataclass(frozen=True)
class Pinned:
    """What `pin` did about one file. ``outcome``: pinned-already, noted, known-file or new-file; ``upstream``: the diff
    to read."""

    target: str
    outcome: str
    text: str
    upstream: str = ""


def main(
    package: str,
    version: str,
    *,
    wheel: Path | None = None,
    yanked: bool = False,
    as_json: bool = False,
    root: Path | None = None,
    chosen: Sequence[Target] | None = None,
    stream: TextIO | None = None,
) -> int:
    """Pin one release and say what was done. Returns the exit code."""
    stream = stream or sys.stdout
    outcomes, written = pin(package, version, wheel, yanked, root, chosen)
    if as_json:
        stream.write(json.dumps({"files": [asdict(each) for each in outcomes], "written": written}, indent=2) + "\n")
        return 0
    for each in outcomes:
        stream.write(each.upstream + each.text + "\n")
    if written:
        stream.write(
            f"Next: python -m pytest tests/pins -k {version}, and a pair of tests/matrix.py: docs/rebasing.md\n"
        )
    return 0


def pin(
    package: str,
    version: str,
    wheel: Path | None = None,
    yanked: bool = False,
    root: Path | None = None,
    chosen: Sequence[Target] | None = None,
) -> tuple[list[Pinned], list[str]]:
    """Add the rows of a release: of each chosen target, the file that the release has.

    Args:
        chosen: default: the default family and peft's layer, which the matrix proves. Other families are pinned where
            tests/family_runs.py has tried them.
        package: transformers or peft.
        version: the release.
        wheel: where it is, and what the wheel cache then has for it; default: the wheel cache, or pip.
        yanked: mark the release, also one that is pinned already.
        root: the patches folder.

    Returns:
        What was done about each file, and the paths that were written.

    Raises:
        PatcherError: the release has none of the files, or a file has no place for the seam, or the rows contradict
            those of the table; nothing was written.
    """
    table = load(root)
    if root is None and (Path(__file__).parents[1] / "patches").exists():
        do = "clone SelfAug's repository, and run the command there"
        raise PatcherError(Problem("no-checkout", "releases are pinned in a checkout", found=str(table.root), do=do))
    version = _canonical(version)
    if not VERSION.fullmatch(version):
        what = f"{version} is not the version of a release on the index"
        do = "nothing: another build is told by its file, and accepted where that is pinned"
        raise PatcherError(Problem("bad-version", what, "X.Y.Z", version, do, USAGE))
    path = _wheel(package, version, wheel)
    rows, outcomes = list(table.pins), []
    of_package = [each for each in (chosen or (MODELS[0], LAYER)) if each.package == package]
    for target in of_package:
        stock = wheels.read(path, target.path)
        if stock is not None:
            row, outcome = _pin_file(table, target, version, stock, yanked)
            rows = [each for each in rows if (each.target, each.version) != (row.target, row.version)] + [row]
            outcomes.append(outcome)
    if not outcomes:
        files = ", ".join(target.path for target in of_package)
        do = "nothing: this release cannot be patched"
        raise PatcherError(
            Problem("no-target", f"{package} {version} has no {files}", found=path.name, do=do, exit_code=UNSUPPORTED)
        )
    problems = contradictions(rows)
    if problems:
        do = "compare the file that you give with the one in the wheel of this release"
        raise PatcherError(*(replace(problem, do=do) for problem in problems))
    if wheel is not None:
        wheels.keep(wheel, package, version)
    if set(rows) == set(table.pins):
        return outcomes, []
    text = table.root / TABLE
    with leaving(f"{text} may be written in part: see git diff."):
        text.write_text(render(rows), encoding="ascii")
    return outcomes, [str(text)]


def _pin_file(table: PinTable, target: Target, version: str, stock: bytes, yanked: bool) -> tuple[Pin, Pinned]:
    name, sha256 = f"{target.package} {version}", digest(stock)
    known, same = table.by_version(target.name, version), table.by_stock(target.name, sha256)
    if known is not None and known.stock_sha256 != sha256:
        do = "check where this wheel is from"
        what = f"{name} is pinned with another {target.path}"
        raise PatcherError(Problem("pinned-otherwise", what, known.stock_sha256, sha256, do))
    if known is not None:
        text = f"{name} is pinned already: {target.name}"
        if yanked and known.note != "yanked":
            return replace(known, note="yanked"), Pinned(target.name, "noted", f"{text}; marked as yanked")
        return known, Pinned(target.name, "pinned-already", text)
    note = "yanked" if yanked else "pre-release" if Version(version).is_prerelease else ""
    row = Pin(target.name, version, sha256, digest(table.patched(target, stock)), note)
    if same is not None:
        text = f"{name} has the {target.name} of {same.version}: pinned."
        return row, Pinned(target.name, "known-file", text)
    pinned = table.of(target.name)
    if not pinned:
        return row, Pinned(target.name, "new-file", f"{name} is the first release with a pinned {target.name}.")
    base = ([each for each in pinned if Version(each.version) < Version(version)] or pinned[:1])[-1]
    before = wheels.read(_wheel(target.package, base.version, None), target.path) or b""
    upstream = changes(target, before, stock, (f"{target.package} {base.version}", name))
    change = "READ the change above" if upstream else f"what the seam leans on is as in {base.version}"
    return row, Pinned(target.name, "new-file", f"{name} has a new {target.name}: pinned; {change}.", upstream)


def _wheel(package: str, version: str, wheel: Path | None) -> Path:
    if wheel is None:
        return wheels.fetch(package, version)
    identity = _identity(wheel)
    if identity != (package, version):
        what = f"{wheel} is of another release"
        raise PatcherError(Problem("other-wheel", what, f"{package} {version}", " ".join(identity)))
    return wheel


def _identity(wheel: Path) -> tuple[str, str]:
    """Name and version, as the wheel's own metadata has them."""
    try:
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            metadata = HeaderParser().parsestr(archive.read(names[0]).decode())
        return str(metadata["Name"]), _canonical(str(metadata["Version"]))
    except (OSError, BadZipFile, IndexError, UnicodeDecodeError) as error:
        raise PatcherError(Problem("bad-wheel", f"{wheel} cannot be read", "a wheel", str(error))) from None


def _canonical(version: str) -> str:
    try:
        return str(Version(version))
    except InvalidVersion:
        problem = Problem("bad-version", f"{version!r} is not a version", "X.Y.Z", exit_code=USAGE)
        raise PatcherError(problem) from None
