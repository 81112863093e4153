"""A crash or an error at every file operation of every verb, one run each.

After each: both packages import and behave as stock or as patched; the next command, whichever it is, finds the
environment in order or puts it in order; and after `revert` every byte, mode, time and file name is as before the
first `install`. The default is a kill at every change, and an error at every fifth operation, the kinds in turn.
ALL_FAULTS=1 tries every kind of error at every operation; and for `install --all`, which patches a file of every
family, a kill at every change and an error at every operation, the kinds in turn.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from stand_ins import make_newer_release, make_release

from selfaug_patcher import families

SCENARIOS = ("install", "revert", "upgrade", "recovery of install", "recovery of revert")
ALL = os.environ.get("ALL_FAULTS") == "1"
needs_minutes = pytest.mark.skipif(not ALL, reason="ALL_FAULTS=1 runs it (minutes)")
FAMILIES = ["", pytest.param("--all", marks=needs_minutes)]
of_all_families = pytest.mark.parametrize("bench", FAMILIES, indirect=True)


@pytest.fixture
def bench(make_place, record_property, request):
    """Runs `fault_bench.py` on a fresh environment, in memory where there is such a folder: thousands of fsync calls
    on a disk would be the test's whole time. With "--all" the environment has the files of all families."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    names = getattr(request, "param", "").split()
    models = {"models": families.MODELS} if names else {}
    old, new = make_release(folder / "old", "0.1.0", **models), make_newer_release(folder / "new", **models)
    place = make_place(folder / "env", **models)
    cache = place.model.parent / "__pycache__"
    cache.mkdir()
    (cache / "modeling_qwen2.cpython-311.pyc").write_bytes(b"stock bytecode")
    place.layer.chmod(0o600)

    def run(scenario: str, kind: str, text: str) -> None:
        order = {"scenario": scenario, "kind": kind, "python": place.python, "site": str(place.site), "names": names}
        order["every operation"], order["every kind"] = ALL, ALL and not names
        order["old"], order["new"] = ([str(each.patches), str(each.code)] for each in (old, new))
        program = Path(__file__).with_name("fault_bench.py")
        command = [sys.executable, str(program), json.dumps(order)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-4000:]
        name = " ".join([scenario, *names])
        record_property("told", f"faults: {name}: {text.format(result.stdout.strip())}, all recovered")

    yield run
    shutil.rmtree(folder)


@of_all_families
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_any_operation_is_recovered(bench, scenario):
    bench(scenario, "kill", "killed at {} operations")


@of_all_families
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_error_at_any_operation_is_undone(bench, scenario):
    bench(scenario, "error", "{} operations failed")


@needs_minutes
@of_all_families
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_error_that_stays_is_recovered_once_it_is_gone(bench, scenario):
    bench(scenario, "lasting", "{} lasting errors")


@pytest.mark.environments
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("scenario", SCENARIOS[:3])
def test_a_system_call_that_fails_or_kills_is_recovered(bench, scenario):
    bench(scenario, "calls", "{} system calls failed or killed by strace")
