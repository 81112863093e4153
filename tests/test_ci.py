""".ci/run, whole, where every program that it calls is a stand-in that notes how it was called."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ["git", "strace", "chromium"]
NOTE = 'echo "${0##*/} $*" >> "$LOG"'
TOOLS = ["sed", "grep", "dirname"]
TEST_COMMAND = ["python3 -m venv .venv", "pip install -q nox>=2024.4", "nox -s lint tests site"]

pytestmark = pytest.mark.skipif(not all(map(shutil.which, ["bash", *TOOLS])), reason="needs bash, sed and grep")


@pytest.fixture
def ci(tmp_path):
    """Run .ci/run on a machine with these programs; (exit status, what was called, stderr)."""
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    for name in (".ci/run", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def program(name, script=NOTE, folder=programs):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    def run(*names, python=(3, 11), user=0, installs=()):
        for name in names:
            program(name)
        for name in TOOLS:
            (programs / name).symlink_to(shutil.which(name))
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        for name in ("pip", "nox"):
            program(name, folder=tmp_path / ".venv" / "bin")
        as_if = f"import sys; sys.version_info = {python}"
        program("python3", f'[ "$1" = -c ] && exec "{sys.executable}" -c "{as_if}; $2"\n{NOTE}')
        program("id", f"echo {user}")
        if installs:
            copies = "\n".join(f'{shutil.which("cp")} "$0" "{programs / name}"' for name in installs)
            program("apt-get", f"{NOTE}\nif [ $1 = install ]; then\n{copies}\nfi")
        command = [shutil.which("bash"), str(tmp_path / ".ci" / "run")]
        env = {"PATH": str(programs), "LOG": str(log)}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        return done.returncode, log.read_text().splitlines() if log.exists() else [], done.stderr

    return run


def test_ci_runs_the_test_command_that_the_readme_gives(ci):
    assert ci(*NEEDED) == (0, TEST_COMMAND, "")


@pytest.mark.parametrize("name", NEEDED[1:])
def test_ci_names_a_program_that_tests_skip_without(ci, name):
    others = [each for each in NEEDED if each != name]
    assert ci(*others) == (0, TEST_COMMAND, f"CI: tests skip for want of {name}\n")


def test_ci_needs_git(ci):
    assert ci(*NEEDED[1:]) == (1, [], "CI: there is no git\n")


def test_ci_installs_what_is_missing_where_it_can(ci):
    status, called, told = ci("git", installs=["strace", "chromium"])
    assert called == [
        "apt-get update -qq",
        "apt-get install -yqq --no-install-recommends strace chromium fonts-liberation",
        *TEST_COMMAND,
    ]
    assert (status, told) == (0, "")


def test_ci_installs_nothing_for_others_than_root(ci):
    status, called, told = ci("git", "strace", user=1000, installs=["chromium"])
    assert (status, called, told) == (0, TEST_COMMAND, "CI: tests skip for want of chromium\n")


def test_an_install_that_fails_is_no_reason_to_test_nothing(ci):
    status, called, told = ci("git", "strace", installs=["another"])
    assert (status, told) == (0, "CI: tests skip for want of chromium\n")
    assert called[-len(TEST_COMMAND) :] == TEST_COMMAND


def test_any_browser_will_do_that_the_check_of_the_site_takes(ci):
    names = runpy.run_path(str(ROOT / "tests" / "site" / "browser.py"))["CHROMIUM"]
    assert f"for name in {' '.join(names)};" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert ci("git", "strace", names[-1])[0] == 0


def test_ci_says_that_python_is_too_old(ci):
    assert ci(*NEEDED, python=(3, 10, 14)) == (1, [], "CI: python3 is older than 3.11\n")


def test_ci_needs_the_python_that_the_demo_needs():
    sandbox = (ROOT / "Code" / "examples" / "demo" / "sandbox.py").read_text(encoding="utf-8")
    oldest = re.search(r"^OLDEST_PYTHON = (\(.*?\))", sandbox, re.MULTILINE)
    assert f"sys.version_info < {oldest[1]}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
