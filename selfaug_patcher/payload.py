"""The runtime: the modules of ``Code/`` and of the packages in it, which `install` puts beside transformers as the
package ``selfaug``. A folder without ``__init__.py`` is not a package, and is not installed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import PatcherError, Problem
from .receipt import MODULE, PACKAGE, Receipt
from .store import RUNTIME, digest, names, read, sha256_of

_NOT_RUNTIME = {"update_module.py"}


@dataclass(frozen=True)
class Runtime:
    """The files to install, by name (``m.py`` or ``package/m.py``), and the version that they say they are."""

    root: Path
    files: Mapping[str, bytes]
    version: str

    def hashes(self) -> dict[str, str]:
        return {name: digest(content) for name, content in self.files.items()}


def load(root: Path | None = None) -> Runtime:
    """Read the runtime; default: the one inside this package (pip-installed), else the checkout's ``Code``."""
    if root is None:
        here = Path(__file__).resolve().parent
        packaged = here / "runtime"
        root = packaged if packaged.is_dir() else here.parent / "Code"
    files = {}
    for path in sorted([*root.glob("*.py"), *root.glob("*/*.py")]):
        name = path.relative_to(root).as_posix()
        ours = name not in _NOT_RUNTIME and MODULE.fullmatch(name) and (path.parent / "__init__.py").is_file()
        content = read(path) if ours else None
        if content is not None:
            files[name] = content
    if not {"__init__.py", "hooks.py"} <= set(files):
        raise PatcherError(
            Problem(
                "no-runtime", "SelfAug's own modules are missing", "Code/ with hooks.py", str(root), "check out again"
            )
        )
    version = re.search(rb'^__version__ = "([\w.+-]{1,40})"', files["__init__.py"], re.MULTILINE)
    return Runtime(root, files, version[1].decode() if version else "")


def installed(site: Path) -> dict[str, str]:
    """What is in ``selfaug/`` of a site directory and in the packages there, and the sha256 of each file; an empty text
    for what is no file. Empty where there is no such folder."""
    folder, files = site / RUNTIME, {}
    if folder.is_symlink() or not folder.is_dir():
        return {}
    inside = subfolders(site)
    for package in ["", *inside]:
        for name in names(folder / package):
            if name != "__pycache__" and (package or name not in inside):
                files[f"{package}/{name}".lstrip("/")] = sha256_of(folder / package / name)
    return files


def subfolders(site: Path) -> list[str]:
    """The plain folders in ``selfaug/`` of a site directory that could be packages."""
    folder = site / RUNTIME
    folders = [name for name in names(folder) if PACKAGE.fullmatch(name)]
    return [name for name in folders if (folder / name).is_dir() and not (folder / name).is_symlink()]


def packages(files: Iterable[str]) -> list[str]:
    """The packages that these files of the runtime lie in."""
    return sorted({name.split("/")[0] for name in files if "/" in name})


def state(site: Path | None, runtime: Runtime, receipt: Receipt | None) -> str:
    """``missing``, ``installed``, ``older`` (another SelfAug's, untouched) or ``modified`` (anything else)."""
    if site is None or not os.path.lexists(site / RUNTIME):
        return "missing"
    present = installed(site)
    if present and present == runtime.hashes():
        return "installed"
    if not present and (site / RUNTIME).is_dir() and not (site / RUNTIME).is_symlink():
        return "missing"  # an empty folder, or one with nothing but bytecode in it
    return "older" if receipt is not None and present and present == dict(receipt.runtime) else "modified"
