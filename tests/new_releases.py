"""Releases of transformers and peft that are newer than the pins: found on the index, proved in the matrix, pinned.

    python tests/new_releases.py              prove them, and pin those that hold
    python tests/new_releases.py --dry-run    only name them

Prints one line for each release: pinned, or what stopped the release (exit code 1); and of a new file, what upstream
changed in the functions that the seam leans on, for a person to read. A release that is stopped leaves nothing behind:
it was pinned in a working copy only. Run it with an interpreter as tests/matrix.py needs.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matrix  # noqa: E402
import matrix_pairs  # noqa: E402
from matrix_environments import Failure, one_line, reason  # noqa: E402

from selfaug_patcher import families, pins  # noqa: E402
from selfaug_patcher.errors import PatcherError  # noqa: E402
from selfaug_patcher.maintain import pin  # noqa: E402

PACKAGES = ("peft", "transformers")  # a new transformers may need the new peft
NAMES = {"peft": [families.LAYER.name], "transformers": [families.MODELS[0].name]}  # of others: tests/family_runs.py


@dataclass(frozen=True)
class Release:
    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


def on_the_index(package: str) -> list[str]:
    """Every release that pip can deliver, for any Python, without those that were withdrawn.

    Raises:
        Failure: pip does not say.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    command += ["--ignore-requires-python", "--disable-pip-version-check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    versions = re.search(r"^Available versions: (.+)$", result.stdout, re.MULTILINE)
    if result.returncode or not versions:
        raise Failure(f"pip does not say which releases of {package} there are: {reason(result.stderr)}")
    return versions[1].split(", ")


def newer(offered: Iterable[str], pinned: Iterable[str]) -> list[str]:
    """The final releases that are newer than every pin, or than every pin of the same major or minor series: a fix of
    an older series counts, a release that a pinned one has overtaken does not. Oldest first."""
    known = {Version(version) for version in pinned}

    def is_newer(version: Version) -> bool:
        series = ([each for each in known if each.release[:n] == version.release[:n]] for n in (0, 1, 2))
        return any(version > max(each) for each in series if each)

    found = sorted(map(Version, offered))
    return [str(version) for version in found if not version.is_prerelease and is_newer(version)]


def find(table: pins.PinTable) -> list[Release]:
    found = []
    for package in PACKAGES:
        pinned = [each.version for name in NAMES[package] for each in table.of(name)]
        found += [Release(package, version) for version in newer(on_the_index(package), pinned)]
    return found


def prove(release: Release, rows: matrix_pairs.Rows, root: Path, work: Path, results: Path) -> matrix_pairs.Rows:
    """Pin the release into a working copy of the checkout, and run its pairs from there. Returns the rows with them.

    Raises:
        Failure, PatcherError: what stopped it, in one line.
    """
    copy = work / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    for name in ("Code", "patches", "selfaug_patcher"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    pin.pin(release.package, release.version, root=copy / "patches")
    table = pins.load(copy / "patches")

    def same_files(older: str) -> bool:
        return all(
            file_of(table, name, older) == file_of(table, name, release.version) for name in NAMES[release.package]
        )

    rows, pairs = matrix_pairs.with_release(rows, release.package, release.version, same_files)
    with contextlib.redirect_stdout(sys.stderr):
        outcomes = matrix.matrix(pairs, work, results, checkout=copy)
    other = next(package for package in PACKAGES if package != release.package)
    for outcome in outcomes:
        if not outcome["kl"]:
            beside = f"beside {other} {outcome[other]}; with the stock files, the training {outcome['stock']}"
            raise Failure(f"{outcome['failed']} ({beside})")
    return rows


def file_of(table: pins.PinTable, name: str, version: str) -> str:
    found = table.by_version(name, version)
    return found.stock_sha256 if found else ""


def pin_for_good(release: Release, rows: matrix_pairs.Rows, root: Path) -> list[str]:
    """Write the rows, and the changelog. Returns what `pin` says about each file."""
    outcomes, _ = pin.pin(release.package, release.version, root=root / "patches")
    matrix_pairs.write(rows)
    changelog(root / "CHANGELOG.md", f"- {release} is supported.\n")
    return [outcome.upstream + outcome.text for outcome in outcomes]


def changelog(page: Path, line: str) -> None:
    """Put the line under Unreleased, Added."""
    heading, added = "## [Unreleased]\n", "### Added\n\n"
    before, rest = page.read_text(encoding="utf-8").split(heading)
    unreleased, *older = rest.split("\n## [", 1)
    first, found, more = unreleased.partition(added)
    unreleased = f"{first}{added}{line}{more}" if found else f"\n{added}{line}{unreleased}"
    page.write_text(before + heading + "\n## [".join([unreleased, *older]), encoding="utf-8")


def write_down(rows: matrix_pairs.Rows, root: Path, results: Path) -> None:
    """The pages, by their own commands; and the default set becomes the newest pair."""
    matrix.write_docs(matrix.read(results), root / "docs" / "releases.md")
    transformers = max(rows, key=Version)
    require(root, transformers, max(rows[transformers], key=Version))
    for script in ("tests/test_readme.py", "tests/pins/history.py"):
        subprocess.run([sys.executable, root / script], check=True)


def require(root: Path, transformers: str, peft: str) -> None:
    """This pair in requirements.txt, and its transformers where the README speaks of it."""
    file, readme = root / "requirements.txt", root / "README.md"
    text = file.read_text(encoding="utf-8")
    (old,) = re.findall(r"^transformers==(\S+)$", text, re.MULTILINE)
    for package, version in (("transformers", transformers), ("peft", peft)):
        text = re.sub(rf"^{package}==\S+$", f"{package}=={version}", text, flags=re.MULTILINE)
    file.write_text(text, encoding="utf-8")
    said = readme.read_text(encoding="utf-8")
    readme.write_text(said.replace(f"for transformers {old}.", f"for transformers {transformers}."), encoding="utf-8")


def run(releases: list[Release], root: Path, work: Path) -> int:
    """Prove and pin; what is stopped is tried again where another release has been pinned since. The exit code."""
    matrix.write_docs({}, root / "docs" / "releases.md")  # refuses a page that lacks a pair, before anything is done
    results, rows, waiting = work / "matrix.json", matrix_pairs.read(), releases
    stopped: dict[Release, str] = {}
    while waiting:
        stopped = {}
        for release in waiting:
            try:
                changed = prove(release, rows, root, work, results)
            except (Failure, PatcherError) as failure:
                stopped[release] = one_line(str(failure))
            else:
                rows = changed
                for text in pin_for_good(release, rows, root):
                    print(text, flush=True)
        waiting = list(stopped) if len(stopped) < len(waiting) else []
    for release, why in stopped.items():
        print(f"{release} is stopped: {why}", flush=True)
    if len(stopped) < len(releases):
        write_down(rows, root, results)
    return 1 if stopped else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="only name the releases")
    options = parser.parse_args()
    try:
        table = pins.load()
        releases = find(table)
        if not releases:
            newest = " and ".join(f"{package} {table.of(NAMES[package][0])[-1].version}" for package in PACKAGES)
            print(f"No new release: {newest} are pinned, and newest.")
            return 0
        if options.dry_run:
            for release in releases:
                print(f"{release} is new")
            return 0
        with tempfile.TemporaryDirectory(prefix="selfaug-releases-") as folder:
            return run(releases, ROOT, Path(folder).resolve())
    except (Failure, PatcherError, subprocess.CalledProcessError) as failure:
        print(f"{failure}\nWhat was pinned before is written: see git status", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
