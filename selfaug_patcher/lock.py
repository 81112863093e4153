"""One patcher at a time in a site directory.

The operating system drops the lock with its process, so a killed patcher leaves a file behind but never a lock. The
file itself is removed under the lock; whoever was waiting for it notices that it is gone, and makes its own.
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
    """Hold the lock of ``folder`` (made for it where missing, and removed after if empty).

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
        # Only now: on NFS, a file that was removed while it is open stays in the folder under another name until then.
        # Nobody is harmed by it: who has the lock by now has its file in there, and who lost the folder makes another.
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
            continue  # whoever held the lock has just removed the folder
        try:
            if _try_lock(descriptor) and _is_at(descriptor, path):
                with contextlib.suppress(OSError):  # only for the message of whoever waits
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
