"""The verb ``pin``, for maintainers, in a checkout: a new release becomes a row of the pin table.

`docs/rebasing.md` walks through it. Whatever it writes is under version control; it never touches an environment.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, replace
from email.parser import HeaderParser
from pathlib import Path
from typing import TextIO
from zipfile import BadZipFile, ZipFile

from packaging.version import InvalidVersion, Version

from . import rebase, udiff, wheels
from .errors import DONE, FAILED, UNSUPPORTED, USAGE, PatcherError, Problem, leaving
from .pins import TARGETS, VERSION, Pin, PinTable, Target, contradictions, load, render
from .store import digest


@dataclass(frozen=True)
class Outcome:
    """What `pin` did. ``outcome``: pinned-already, noted, known-file, patch-fits, new-patch, merged or conflicts."""

    outcome: str
    text: str
    written: tuple[str, ...]
    upstream: str = ""
    exit_code: int = DONE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("package", choices=[target.package for target in TARGETS])
    parser.add_argument("version", help="of the release, as on the index")
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help="its wheel (default: fetched through pip); kept in the cache"
    )
    parser.add_argument("--from-edited", type=Path, metavar="FILE", help="make a new patch of this patched file")
    parser.add_argument("--yanked", action="store_true", help="mark the release, pinned already or not, as withdrawn")


def main(options: argparse.Namespace, root: Path | None = None, stream: TextIO | None = None) -> int:
    """Pin one release and say what was done. Returns the exit code: 1 where a person has to edit a merge first."""
    target = next(target for target in TARGETS if target.package == options.package)
    result = pin(target, options.version, options.wheel, options.from_edited, options.yanked, root)
    stream = stream or sys.stdout
    stream.write(json.dumps(asdict(result), indent=2) + "\n" if options.json else result.upstream + result.text + "\n")
    return result.exit_code


def pin(
    target: Target,
    version: str,
    wheel: Path | None = None,
    edited: Path | None = None,
    yanked: bool = False,
    root: Path | None = None,
) -> Outcome:
    """Add the row of a release, where a patch can be found for it; else write a merge for a person to edit.

    Args:
        target: the file.
        version: the release.
        wheel: where it is, and what the wheel cache then has for it; default: the wheel cache, or pip.
        edited: the file as it should be once patched; a patch is made of it.
        yanked: mark the row, also one that is there.
        root: the patches folder.
    """
    table = load(root)
    if root is None and (Path(__file__).parent / "patches").exists():
        do = "clone SelfAug's repository, and run the command there"
        raise PatcherError(Problem("no-checkout", "releases are pinned in a checkout", found=str(table.root), do=do))
    version = _canonical(version)
    if not VERSION.fullmatch(version):
        what = f"{version} is not the version of a release on the index"
        do = "nothing: another build is told by its file, and accepted where that is pinned"
        raise PatcherError(Problem("bad-version", what, "X.Y.Z", version, do, USAGE))
    stock = _stock(target, version, wheel)
    sha256 = digest(stock)
    known = table.by_version(target.name, version)
    if known is not None and known.stock_sha256 != sha256:
        what = f"{target.package} {version} is pinned with another file"
        raise PatcherError(
            Problem("pinned-otherwise", what, known.stock_sha256, sha256, "check where this wheel is from")
        )
    same = table.by_stock(target.name, sha256)
    if same is not None and edited is not None:
        what = f"{target.package} {version} has the file of {same.version}, which has its patch: {same.patch}"
        do = f"python -m selfaug_patcher pin {target.package} {version}, without --from-edited"
        raise PatcherError(Problem("has-patch", what, "a file that is not pinned yet", sha256, do))
    if wheel is not None:
        wheels.keep(wheel, target.package, version)
    if known is not None:
        text = f"{target.package} {version} is pinned already: {known.patch}"
        if yanked and known.note != "yanked":
            return Outcome("noted", f"{text}; marked as yanked", _write(table, replace(known, note="yanked")))
        return Outcome("pinned-already", text, ())
    note = "yanked" if yanked else "pre-release" if Version(version).is_prerelease else ""
    new = Pin(target.name, version, sha256, "", "", note)
    pinned = table.of(target.name)
    base = ([row for row in pinned if Version(row.version) < Version(version)] or pinned[:1])[-1]
    if edited is not None:
        return _from_edited(table, new, base, target, stock, edited)
    if same is not None:
        new = replace(new, patch=same.patch, patched_sha256=same.patched_sha256)
        text = f"{target.package} {version} has the file of {same.version}: pinned with {same.patch}."
        return Outcome("known-file", text + _next(new), _write(table, new))
    before = _stock(target, base.version, None)
    labels = (f"{target.package} {base.version}", f"{target.package} {version}")
    upstream = rebase.changes(target, before, stock, labels)
    for name in reversed([name for name in table.patches if name.startswith(target.package + "/")]):
        patched = _try(table.patches[name], stock)
        if patched is not None:
            new = replace(new, patch=name, patched_sha256=digest(patched))
            change = "READ the change above" if upstream else f"what the patch leans on is as in {base.version}"
            text = f"{name} fits the new file of {target.package} {version}: pinned; {change}."
            return Outcome("patch-fits", text + _next(new), _write(table, new), upstream)
    return _merge(table, base, target, version, (before, stock), upstream)


def _merge(
    table: PinTable, base: Pin, target: Target, version: str, files: tuple[bytes, bytes], upstream: str
) -> Outcome:
    before, stock = files
    path = Path(f"{Path(target.path).stem}-{version}.edited.py")
    patched = udiff.apply(table.patch(base), before)
    labels = (f"{target.package} {base.version}", f"SelfAug on {base.version}", f"{target.package} {version}")
    merged, conflicts = rebase.three_way(before, patched, stock, labels)
    try:
        with path.open("xb") as file:
            file.write(merged)
    except FileExistsError:
        do = f"python -m selfaug_patcher pin {target.package} {version} --from-edited {path}, or delete it"
        raise PatcherError(Problem("edit-exists", f"{path} is there from an earlier merge", do=do)) from None
    text = (
        f"No patch fits the new file of {target.package} {version}. Merged into {path}, "
        f"{'no conflict' if not conflicts else f'conflicts: {conflicts}'}; the table is as it was.\n"
        f"Edit that file until it is as it should be once patched, then:\n"
        f"  python -m selfaug_patcher pin {target.package} {version} --from-edited {path}"
    )
    return Outcome("conflicts" if conflicts else "merged", text, (str(path),), upstream, FAILED)


def _from_edited(table: PinTable, row: Pin, base: Pin, target: Target, stock: bytes, path: Path) -> Outcome:
    try:
        edited = path.read_bytes()
        edited.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PatcherError(Problem("no-edited-file", f"{path} cannot be read", "UTF-8 text", str(error))) from None
    why = rebase.unfinished(edited) or ("it is the stock file" if edited == stock else "")
    if why:
        raise PatcherError(Problem("unfinished-edit", f"{path} is not finished", "the patched file", why))
    for name in table.patches:
        if name.startswith(target.package + "/") and _try(table.patches[name], stock) == edited:
            row = replace(row, patch=name, patched_sha256=digest(edited))
            return Outcome(
                "patch-fits", f"{name} makes the same file: pinned with it." + _next(row), _write(table, row)
            )
    name = f"{target.package}/{Path(target.path).stem}-{row.version}.patch"
    row = replace(row, patch=name, patched_sha256=digest(edited))
    headers = {**table.patch(base).headers, "Applies-To": f"{target.package} {row.version}"}
    text = rebase.write(headers, rebase.body(target, stock, edited))
    udiff.parse(text, name)
    said = f"{name} is a new patch: {target.package} {row.version} pinned with it."
    return Outcome("new-patch", said + _next(row), _write(table, row, text))


def _write(table: PinTable, row: Pin, patch_text: str = "") -> tuple[str, ...]:
    """Write the table with this row, its patch if that is new, and the ``Applies-To`` headers that the row changes.

    The row takes the place of one of its release. Whatever `load` would refuse about the rows is refused before
    anything is written.
    """
    others = [pin for pin in table.pins if (pin.target, pin.version) != (row.target, row.version)]
    pins = sorted((*others, row), key=lambda pin: (_order(pin), Version(pin.version)))
    new = PinTable(tuple(pins), table.root, table.patches)
    problems = contradictions(list(new.of(row.target)))
    if problems:
        do = "compare the file that you give with the one in the wheel of this release"
        raise PatcherError(*(replace(problem, do=do) for problem in problems))
    texts = {row.patch: patch_text} if patch_text else {}
    for name, patch in table.patches.items():
        applies_to = new.applies_to(name)
        if applies_to != patch.headers.get("Applies-To"):
            diff = (table.root / name).read_text(encoding="utf-8").split("\n--- a/", 1)[1]
            texts[name] = rebase.write({**patch.headers, "Applies-To": applies_to}, "--- a/" + diff)
    texts["pins.json"] = render(new.pins)
    with leaving(f"{table.root} may be written in part: see git diff."):
        for name, text in texts.items():
            (table.root / name).write_text(text, encoding="utf-8")
    return tuple(str(table.root / name) for name in texts)


def _order(row: Pin) -> int:
    return [target.name for target in TARGETS].index(row.target)


def _next(row: Pin) -> str:
    return f"\nNext: python -m pytest tests/pins -k {row.version}, then docs/rebasing.md from step 3 on"


def _try(patch: udiff.Patch, stock: bytes) -> bytes | None:
    """The patched file, if this patch fits and the result can be parsed."""
    try:
        patched = udiff.apply(patch, stock)
    except PatcherError:
        return None
    return None if rebase.unfinished(patched) else patched


def _stock(target: Target, version: str, wheel: Path | None) -> bytes:
    if wheel is not None:
        found = _identity(wheel)
        if found != (target.package, version):
            expected = f"{target.package} {version}"
            raise PatcherError(Problem("other-wheel", f"{wheel} is of another release", expected, " ".join(found)))
    path = wheel or wheels.fetch(target.package, version)
    data = wheels.read(path, target.path)
    if data is None:
        what = f"{target.package} {version} has no {target.path}"
        do = "nothing: this release cannot be patched"
        raise PatcherError(Problem("no-target", what, found=path.name, do=do, exit_code=UNSUPPORTED))
    return data


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
