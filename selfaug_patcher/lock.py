"""One patcher at a time in a site directory.

The operating system releases the lock when the process ends, so a killed patcher leaves a file behind, but no lock. The
file is removed under the lock; a waiting process sees that the file is gone, and makes a new one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from .errors import PatcherError, Problem, from_os_error
from .files import look_like

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows: os.replace of a file in use fails there, which undoes the whole run
    fcntl = None

WAIT_SECONDS = 60.0


@contextlib.contextmanager
def hold(folder: Path, wait: float = WAIT_SECONDS) -> Iterator[None]:
    """Hold the lock of ``folder`` (which is made if missing, and removed afterwards if empty).

    Raises:
        PatcherError: another patcher holds it for longer than ``wait`` seconds, or the folder cannot be written to.
    """
    path = folder / "lock"
    try:
        descriptor = _acquire(folder, path, wait)
    except OSError as error:
        raise PatcherError(from_os_error(error, f"lock {folder}")) from None
    try:
        yield
    finally:
        _release(descriptor, path)
        # Only now: NFS keeps a file that was removed while open in the folder, under another name, until it is closed.
        # Safe: rmdir fails if another process holds the lock; a waiter recreates the folder.
        with contextlib.suppress(OSError):
            os.rmdir(folder)


def _release(descriptor: int, path: Path) -> None:
    if os.name == "nt":  # no open file can be removed there, and there is no lock to remove it under
        os.close(descriptor)
    with contextlib.suppress(OSError):
        os.unlink(path)
    if os.name != "nt":
        os.close(descriptor)


def _acquire(folder: Path, path: Path, wait: float) -> int:
    deadline = time.monotonic() + wait
    while True:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
                look_like(folder, folder.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except FileNotFoundError:
            if not folder.parent.is_dir():
                raise
            continue  # the last holder has just removed the folder
        try:
            if _try_lock(descriptor) and _is_at(descriptor, path):
                with contextlib.suppress(OSError):  # only for the error message of a waiting process
                    os.truncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                return descriptor
            holder = os.read(descriptor, 20).decode("ascii", "replace") or "unknown"
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise PatcherError(
                Problem(
                    id="busy",
                    what="another selfaug_patcher is at work in this environment",
                    expected="one at a time",
                    found=f"process {holder}, for more than {wait:g} seconds",
                    do="wait until it is done, then run the same command again",
                )
            )
        time.sleep(0.02)


def _try_lock(descriptor: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        if error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            return True  # a file system without locks (some cluster mounts): no worse than any other installer
        raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
