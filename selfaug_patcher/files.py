"""File operations: one file or folder at a time, done completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from .receipt import BYTECODE
from .store import names, sha256_of


def look_like(path: Path, like: Path) -> None:
    """Give a new file or folder the mode and the owner of another one: a file made by root with a narrow umask must not
    become one that its neighbours' users cannot read, or cannot remove."""
    theirs, ours = os.stat(like), os.stat(path)
    if hasattr(os, "chown") and (theirs.st_uid, theirs.st_gid) != (ours.st_uid, ours.st_gid):
        with contextlib.suppress(PermissionError):  # only root may give files away
            os.chown(path, theirs.st_uid, theirs.st_gid)
    os.chmod(path, stat.S_IMODE(theirs.st_mode))


def link(source: Path, target: Path) -> None:
    """The same file under another name; where links cannot be made, a copy with its mode, owner and times."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target)
    try:
        os.link(source, target, follow_symlinks=False)
        if sha256_of(source) == sha256_of(target):  # a relative symbolic link leads nowhere from here
            return
        os.unlink(target)
    except (OSError, NotImplementedError) as error:
        if getattr(error, "errno", None) in (errno.ENOENT, errno.ENOSPC, errno.EIO):
            raise
    shutil.copy2(source, target)
    look_like(target, source)
    sync(target)


def write(path: Path, content: bytes, like: Path | None = None, newer_than: Path | None = None) -> None:
    """Write a new file, to the disk: with the mode and owner of ``like``, and another time than ``newer_than``."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if like is not None and like.exists():
        shutil.copystat(like, path)
        look_like(path, like)
        os.utime(path)
    if newer_than is not None and newer_than.exists():
        # Bytecode remembers whole seconds: a new file must not carry the time of the one that it replaces.
        old, now = os.stat(newer_than), os.stat(path)
        if int(old.st_mtime) == int(now.st_mtime):
            os.utime(path, (now.st_atime, old.st_mtime + 2))


def remove_folder(place: Path) -> None:
    """Remove a folder and the bytecode in it. It stays if anything else is in it, or if it is a link to one."""
    cache = place / "__pycache__"
    folders = [folder for folder in (cache, place) if not (folder.is_symlink() or place.is_symlink())]
    for name in names(cache) if cache in folders else ():
        if BYTECODE.fullmatch(name):
            os.unlink(cache / name)
    for folder in folders:
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, reach the disk, where the system can do that."""
    if os.name == "nt":  # only for files that are open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network and FUSE file systems know no such thing for a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
