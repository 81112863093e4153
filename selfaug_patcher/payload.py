"""The runtime: the modules of ``Code/``, which `install` puts beside transformers as the package ``selfaug``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import PatcherError, Problem
from .receipt import MODULE, Receipt
from .store import RUNTIME, digest, names, read

_NOT_RUNTIME = {"update_module.py"}


@dataclass(frozen=True)
class Runtime:
    """The files to install, by name, and the version that they say they are."""

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
    for path in sorted(root.glob("*.py")):
        content = read(path)
        if content is not None and path.name not in _NOT_RUNTIME and MODULE.fullmatch(path.name):
            files[path.name] = content
    if not {"__init__.py", "hooks.py"} <= set(files):
        raise PatcherError(
            Problem(
                "no-runtime", "SelfAug's own modules are missing", "Code/ with hooks.py", str(root), "check out again"
            )
        )
    version = re.search(rb'^__version__ = "([\w.+-]{1,40})"', files["__init__.py"], re.MULTILINE)
    return Runtime(root, files, version[1].decode() if version else "")


def installed(site: Path) -> dict[str, str]:
    """The modules in ``selfaug/`` of a site directory, and their sha256; empty where there is no such folder."""
    folder = site / RUNTIME
    if folder.is_symlink() or not folder.is_dir():
        return {}
    return {name: digest(read(folder / name) or b"") for name in names(folder) if name != "__pycache__"}


def state(site: Path | None, runtime: Runtime, receipt: Receipt | None) -> str:
    """``missing``, ``installed``, ``older`` (another SelfAug's, untouched) or ``modified`` (anything else)."""
    if site is None or not os.path.lexists(site / RUNTIME):
        return "missing"
    found = installed(site)
    if found and found == runtime.hashes():
        return "installed"
    if not found and (site / RUNTIME).is_dir() and not (site / RUNTIME).is_symlink():
        return "missing"  # an empty folder, or one with nothing but bytecode in it
    return "older" if receipt is not None and found and found == dict(receipt.runtime) else "modified"
