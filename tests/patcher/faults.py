"""Faults at every file operation below a folder, in a forked process of their own.

Operations are seen where Python reports them to audit hooks (open, link, rename, remove, mkdir, rmdir, chmod, chown,
utime, listing) and, for those that it does not report, at os.fsync and os.write's buffered form. At the chosen one the
process is killed, or the operation fails with the chosen error, or half of what was to be written arrives.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

REPORTED = {
    "open",
    "os.link",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.symlink",
    "os.truncate",
    "os.scandir",
    "os.listdir",
}
READS = {"os.scandir", "os.listdir"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
REFUSED = 17


class Fault:
    """Counts file operations below ``folder``, and acts at number ``at``: ``kill``, an errno, or ``short``.

    ``lasting`` errors go on from there: what follows fails too, as on a disk that stays full. ``reads`` counts the
    operations that change nothing as well: a crash there is the crash at the change before.
    """

    def __init__(
        self, folder: Path, at: int = -1, what: str | int = "", lasting: bool = False, reads: bool = True
    ) -> None:
        self.folder, self.at, self.what, self.lasting = str(folder), at, what, lasting
        self.reads = reads
        self.count = 0

    def install(self) -> None:
        sys.addaudithook(self._audit)
        fsync = os.fsync

        def failing_fsync(descriptor: int) -> None:
            self._operation()
            fsync(descriptor)

        os.fsync = failing_fsync
        open_path = Path.open

        def failing_open(path: Path, mode: str = "r", *rest, **options):
            file = open_path(path, mode, *rest, **options)
            return _Short(file, self) if "x" in mode and str(path).startswith(self.folder) else file

        Path.open = failing_open

    def _audit(self, event: str, arguments: tuple) -> None:
        if event not in REPORTED:
            return
        if not self.reads and (event in READS or (event == "open" and not arguments[2] & WRITING)):
            return
        paths = [os.fsdecode(a) for a in arguments if isinstance(a, (str, bytes, os.PathLike))]
        if any(path.startswith(self.folder) for path in paths):
            self._operation()

    def _operation(self) -> bool:
        """Count one; True where a write should stop half-way."""
        self.count += 1
        if self.count != self.at and not (self.lasting and self.count > self.at >= 0):
            return False
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(self.what, int):
            raise OSError(self.what, os.strerror(self.what))
        return self.what == "short"


class _Short:
    """A file whose write may arrive in part."""

    def __init__(self, file: io.BufferedWriter, fault: Fault) -> None:
        self.file, self.fault = file, fault

    def __enter__(self) -> _Short:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        if self.fault._operation():
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            raise OSError(28, os.strerror(28))
        self.file.write(content)

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()


def forked(action: Callable[[], int | None]) -> int:
    """Run ``action`` in a forked process; its exit status, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            code = action() or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def count(folder: Path, action: Callable[[], None], reads: bool = True) -> int:
    """How many file operations ``action`` does below ``folder``; it is carried out."""
    reader, writer = os.pipe()

    def counted() -> None:
        fault = Fault(folder, reads=reads)
        fault.install()
        action()
        os.write(writer, str(fault.count).encode())

    assert forked(counted) == 0
    os.close(writer)
    with os.fdopen(reader) as file:
        return int(file.read())


def with_fault(
    folder: Path, action: Callable[[], int | None], at: int, what: str | int, lasting: bool = False, reads: bool = True
) -> int:
    def faulty() -> int | None:
        Fault(folder, at, what, lasting, reads).install()
        return action()

    return forked(faulty)
