"""What a folder looks like, to be compared with what it looked like before."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path


def snapshot(folder: Path) -> dict:
    """Every file and folder: mode, time of change, and content or where a link leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        information = path.lstat()
        if path.is_symlink():
            found[str(path.relative_to(folder))] = ("link", os.readlink(path))
        elif path.is_dir():
            found[str(path.relative_to(folder))] = ("folder", stat.S_IMODE(information.st_mode))
        else:
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(folder))] = (stat.S_IMODE(information.st_mode), information.st_mtime_ns, sha256)
    return found
