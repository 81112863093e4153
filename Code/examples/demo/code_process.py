"""Runs Python code that a model has written, in a process of its own with limits.

The limits keep a wrong program from doing harm by mistake: time, memory, output, no files written, no other programs,
no network. They are no defence against a program that means harm. docs/demo.md says what they do not catch.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from threading import Thread
from typing import IO

SECONDS = 10  # of CPU time
PATIENCE = 3  # times as many seconds may pass on the clock: the machine may be busy, or the program may wait
MEMORY = 2**30  # bytes
OUTPUT = 2**20  # bytes that the program may print, and as many that it may write to stderr
SHOWN = 300  # characters of an error's last line
# The program: limits first, then the code. It has passed if the last thing that it prints is the word that only the
# end of the program knows: code that ends the process early, with exit(0) too, has not passed.
PROGRAM = """
import os, sys
def limit(seconds, memory):
    try:
        import resource
    except ImportError:  # Windows: the clock alone
        return
    for what, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # at the soft one comes SIGXCPU, which nothing else sends
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, 4096, 4096),  # also for what makes files without an audit event, as a lock does
        (resource.RLIMIT_CORE, 0, 0),
    ):
        try:
            resource.setrlimit(what, (soft, hard))
        except (ValueError, OSError):  # a limit that this system does not have
            pass
    try:
        os.unshare(os.CLONE_NEWUSER | os.CLONE_NEWNET)  # Linux, Python 3.12: no network
    except (AttributeError, OSError):
        pass
def end_with(parent):
    if sys.platform == "linux":
        try:
            import ctypes
            # PR_SET_PDEATHSIG; after unshare, since a change of credentials clears it
            ctypes.CDLL(None).prctl(ctypes.c_int(1), ctypes.c_ulong(9))
        except (ImportError, OSError, AttributeError):
            return
        for name in [name for name in sys.modules if name.partition(".")[0] in {"ctypes", "_ctypes"}]:
            del sys.modules[name]  # the code meets the same modules on every system
        if os.getppid() != parent:  # it had ended before it could be watched
            os._exit(1)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
def refuse(event, arguments):
    head = event.partition(".")[0]
    changed = event in {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate",
                        "os.chmod", "os.chown", "os.chflags", "os.mkfifo", "os.mknod", "os.utime", "os.setxattr",
                        "os.removexattr", "os.kill", "os.killpg", "os.system", "os.exec", "os.fork", "os.forkpty",
                        "os.posix_spawn", "os.spawn", "os.startfile"}
    written = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if head in {"socket", "subprocess", "shutil", "sqlite3", "ctypes"} or changed or written:
        raise PermissionError(f"not allowed here: {event}")
def refuse_what_has_no_event():
    for name in ("mkfifo", "mknod"):
        for module in (os, sys.modules[os.name]):  # os has copies of what is in posix
            if hasattr(module, name):
                setattr(module, name, lambda *path, event=f"os.{name}", **options: refuse(event, ()))
def main():
    code, end, seconds, memory, parent = sys.stdin.buffer.read().decode().split("\\0")
    limit(int(seconds), int(memory))
    end_with(int(parent))
    refuse_what_has_no_event()
    program = compile(code, "answer", "exec")
    sys.stdin = open(os.devnull)
    sys.addaudithook(refuse)
    exec(program, {"__name__": "__main__"})
    print(end)
main()
"""


def run(code: str, seconds: int = SECONDS, memory: int = MEMORY) -> str:
    """Run ``code`` to its end. Returns "" if nothing went wrong, else what did: the error's last line, or which limit.

    Args:
        seconds: CPU time that the program may take.
        memory: bytes of address space that the program may have.
    """
    end = secrets.token_hex(8)
    given = "\0".join([code.replace("\0", ""), end, str(seconds), str(memory), str(os.getpid())])
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=folder, env={}, bufsize=0, start_new_session=True,
        )  # fmt: skip
        output, errors = _Reader(child, child.stdout), _Reader(child, child.stderr)
        if child.stdin:
            with suppress(OSError):  # it ended before it had read everything, and stderr says why
                child.stdin.write(given.encode(errors="replace"))
            child.stdin.close()
        try:
            child.wait(PATIENCE * seconds)
        except subprocess.TimeoutExpired:
            return f"no end after {PATIENCE * seconds} seconds"
        finally:
            _kill(child)
            output.join(1)
            errors.join(1)
    if output.is_alive() or errors.is_alive():
        return "ended, but a program that it had started goes on"
    if output.over or errors.over:
        return f"over {OUTPUT} bytes of output"
    if output.text().endswith(f"{end}\n"):
        return ""
    if child.returncode < 0:
        ended = _signal(-child.returncode)
        return f"over {seconds} CPU seconds" if ended == "SIGXCPU" else f"ended by {ended}"
    lines = errors.text().strip().splitlines()
    return lines[-1][:SHOWN] if lines else f"ended early, with exit code {child.returncode}"


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End ``child``, and on POSIX what it has started, which would keep its output open."""
    with suppress(OSError, AttributeError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # Linux has real-time signals without a name
        return f"signal {number}"


class _Reader(Thread):
    """Reads what the child writes, beside the other stream, and ends the child when it writes too much."""

    def __init__(self, child: subprocess.Popen[bytes], stream: IO[bytes] | None) -> None:
        super().__init__(daemon=True)
        self.child, self.stream, self.read, self.over = child, stream, bytearray(), False
        self.start()

    def run(self) -> None:
        if self.stream is None:
            return
        with self.stream:
            while block := self.stream.read(2**16):  # what is there, since the stream has no buffer
                self.read += block
                if len(self.read) > OUTPUT:
                    self.over = True
                    self.child.kill()
                    return

    def text(self) -> str:
        return self.read.decode(errors="replace").replace("\r\n", "\n")  # Windows ends lines so
