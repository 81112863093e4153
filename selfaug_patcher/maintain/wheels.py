"""Wheels of other releases, fetched once through pip into a cache outside the repository.

For maintainers and tests: `install` never needs a wheel. The cache holds wheels under the names that they have on
the index and nothing else, so a folder of wheels from elsewhere serves as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from ..errors import PatcherError, Problem
from ..seam import MAX_FILE_BYTES

_BAR = 30


def cache() -> Path:
    """``SELFAUG_WHEEL_CACHE``, by default ``~/.cache/selfaug/wheels``. It need not exist."""
    return Path(os.environ.get("SELFAUG_WHEEL_CACHE") or "~/.cache/selfaug/wheels").expanduser()


def find(package: str, version: str) -> Path | None:
    """The wheel in the cache, if it is there."""
    path = cache() / f"{package}-{version}-py3-none-any.whl"
    return path if path.is_file() else None


def read(wheel: Path, path: str) -> bytes | None:
    """One source file out of a wheel; None if the wheel does not have it.

    Raises:
        PatcherError: this is no wheel, or the file is larger than any source file.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            if path not in archive.NameToInfo:
                return None
            with archive.open(path) as member:
                data = member.read(MAX_FILE_BYTES + 1)
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        do = f"delete {wheel}; it is fetched again when it is needed"
        raise PatcherError(Problem("bad-wheel", f"{wheel.name} cannot be read", "a wheel", str(error), do)) from None
    if len(data) > MAX_FILE_BYTES:
        expected = f"at most {MAX_FILE_BYTES} bytes"
        raise PatcherError(Problem("bad-wheel", f"{path} in {wheel.name} is not a source file", expected, "more"))
    return data


def keep(wheel: Path, package: str, version: str) -> None:
    """Put a copy of this wheel into the cache as the one of this release, in place of another."""
    path = cache() / f"{package}-{version}-py3-none-any.whl"
    if path.exists() and path.samefile(wheel):
        return
    cache().mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".part-", dir=cache())
    try:
        os.replace(shutil.copy(wheel, folder), path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(package: str, version: str) -> Path:
    """The wheel in the cache, downloaded if it is not there. Appears under its name only when it is complete.

    Raises:
        PatcherError: pip could not deliver it; its own words are in the message.
    """
    cached = find(package, version)
    if cached:
        return cached
    cache().mkdir(parents=True, exist_ok=True)
    folder = tempfile.mkdtemp(prefix=".part-", dir=cache())
    try:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--ignore-requires-python", "--dest", folder, f"{package}=={version}"]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        wheels = sorted(Path(folder).glob("*.whl"))
        if result.returncode or not wheels:
            what = f"pip could not download {package} {version}"
            do = f"check the network, or put its wheel into {cache()}"
            raise PatcherError(Problem("no-wheel", what, "a wheel", result.stdout.strip()[-600:] or "nothing", do))
        os.replace(wheels[0], cache() / wheels[0].name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    path = find(package, version)
    if path is None:
        raise PatcherError(Problem("no-wheel", f"the wheel of {package} {version} has another name than expected"))
    return path


def fetch_all(releases: Iterable[tuple[str, str]], stream: TextIO) -> None:
    """Fetch what is not in the cache yet, and show how far it is: a bar on a terminal, else a line per wheel."""
    missing = [release for release in dict.fromkeys(releases) if not find(*release)]
    for done, (package, version) in enumerate(missing):
        _show(stream, done, len(missing), f"{package} {version}")
        try:
            fetch(package, version)
        except BaseException:
            if stream.isatty():
                stream.write("\n")
            raise
    if missing:
        _show(stream, len(missing), len(missing), f"{len(missing)} wheels in {cache()}")
        if stream.isatty():
            stream.write("\n")


def _show(stream: TextIO, done: int, total: int, text: str) -> None:
    if stream.isatty():
        full = _BAR * done // total
        stream.write(f"\r\033[K[{'#' * full}{'.' * (_BAR - full)}] {done}/{total}  {text}")
    else:
        stream.write(f"wheels {done}/{total}: {text}\n")
    stream.flush()
