from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import code_process
import pytest

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends it so")
needs_limits = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource limits")


def test_a_program_that_comes_to_its_end_has_nothing_wrong():
    assert code_process.run("print('hi')\nassert 1 + 1 == 2") == ""


def test_a_pool_of_threads_works():
    """Its lock is a file in memory, on Linux."""
    assert code_process.run("from multiprocessing.pool import ThreadPool\nThreadPool(2).map(abs, [-1])") == ""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("exit(0)", "ended early, with exit code 0"),
        ("import os; os._exit(0)", "ended early, with exit code 0"),
        ("input()", "EOFError: EOF when reading a line"),
    ],
)
def test_what_goes_wrong_is_told(code, said):
    assert code_process.run(code) == said


@pytest.mark.parametrize(
    "code",
    [
        "open('left', 'w')",
        "open('left', 'ab')",
        "import os; os.open('left', os.O_CREAT)",
        "import os; os.remove('/tmp/none')",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import socket; socket.create_connection(('localhost', 9))",
        "import shutil; shutil.rmtree('.')",
        "import multiprocessing as m; m.Process(target=print).start()",
        "import os; os.fork()",
        "import sqlite3; sqlite3.connect('left')",
        "import os; os.utime('.')",
        pytest.param("import os; os.mkfifo('left')", marks=needs_limits),
        pytest.param("import posix; posix.mknod('left')", marks=needs_limits),
        pytest.param("import os; os.setxattr('.', 'user.a', b'1')", marks=linux),
        pytest.param("import os; os.removexattr('.', 'user.a')", marks=linux),
    ],
)
def test_what_could_do_harm_is_refused(code):
    assert code_process.run(code).startswith("PermissionError: not allowed here: ")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_endless_output_ends_the_program_and_is_not_kept(stream):
    code = f"import sys\nwhile True: sys.{stream}.write('x' * 2**16)"
    assert code_process.run(code) == "over 1048576 bytes of output"


def test_the_report_has_the_end_of_an_error_in_bounded_length():
    said = code_process.run("raise ValueError('x' * 2**19)")
    assert said.startswith("ValueError: xxx")
    assert len(said) == 300


@needs_limits
def test_no_file_can_grow_beyond_a_lock_of_multiprocessing():
    code = "import resource; assert resource.getrlimit(resource.RLIMIT_FSIZE) == (4096, 4096)"
    assert code_process.run(code) == ""


@needs_limits
def test_time_and_memory_have_limits(monkeypatch):
    with monkeypatch.context() as patient:
        patient.setattr(code_process, "PATIENCE", 300)  # a busy machine may give a second of its CPU in minutes
        assert code_process.run("while True: pass", seconds=1) == "over 1 CPU seconds"
    assert code_process.run("import time; time.sleep(60)", seconds=1) == "no end after 3 seconds"
    assert code_process.run("x = bytearray(2**30)", memory=2**29) == "MemoryError"


@needs_limits
@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGKILL"])
def test_a_signal_that_is_not_of_the_cpu_limit_has_its_own_name(name):
    code = f"import signal, sys\nsys.stderr.write('a warning')\nsignal.raise_signal(signal.{name})"
    assert code_process.run(code) == f"ended by {name}"


OWN_SESSION = "ended, but a program that it had started goes on"
STARTS = """
import multiprocessing.util, sys
python = sys.executable.encode()
multiprocessing.util.spawnv_passfds(python, [python, b"-c", b"import os, time; {own}time.sleep(60)"], [])
"""


@linux
@pytest.mark.parametrize(("own", "said"), [("", ""), ("os.setsid(); ", OWN_SESSION)])
def test_what_a_program_has_started_past_the_audit_events_does_not_hold_the_report(own, said):
    began = time.monotonic()
    assert code_process.run(STARTS.format(own=own) + "import time\ntime.sleep(1)", seconds=10) == said
    assert time.monotonic() - began < 30


@linux
def test_a_program_ends_with_the_process_that_started_it(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    waits = f"import time; open({str(pipe)!r}); time.sleep(600)"
    code = f"import sys; sys.path.append({str(Path(code_process.__file__).parent)!r}); import code_process\n"
    parent = subprocess.Popen([sys.executable, "-c", f"{code}code_process.run({waits!r}, seconds=300)"])
    try:
        wait_for(lambda: opened(pipe))
        (child,) = children(parent.pid)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not runs(child))


def opened(pipe):
    """Whether somebody reads the pipe: the program runs."""
    try:
        os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def children(parent):
    return [int(one) for file in Path(f"/proc/{parent}/task").glob("*/children") for one in file.read_text().split()]


def runs(process):
    """Not so for one that has ended, though nobody has asked how."""
    try:
        return Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_code_sees_no_variables_of_the_environment(monkeypatch):
    monkeypatch.setenv("A_SECRET", "1")
    assert code_process.run("import os; assert 'A_SECRET' not in os.environ") == ""
