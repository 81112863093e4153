"""The tests pass wherever they are started from: by `nohup`, in a background job that ignores signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
INTERRUPTED = ("tests/patcher/test_run.py", "tests/study/test_schedule.py", "-k", "Ctrl-C or interrupt")
START = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *sys.argv[1:]])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs signals as POSIX has them")
def test_the_tests_of_ctrl_c_pass_where_nohup_or_a_background_job_has_signals_ignored():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        [sys.executable, "-c", START, *INTERRUPTED],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.returncode, " passed" in result.stdout) == (0, True), result.stdout[-2000:] + result.stderr[-2000:]
