"""A command whose answer cannot be written ends with one error, and not with Python's traceback."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
COMMANDS = ["status", "status --json", "diff", "pins", "pins --json", "install --dry-run --json", "install --json"]


def full(place, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [place.python, "-m", "selfaug_patcher", *arguments]
    with Path("/dev/full").open("w") as disk:
        return subprocess.run(command, stdout=disk, stderr=subprocess.PIPE, text=True, check=False, cwd=place.root)


@pytest.mark.parametrize("command", [*COMMANDS, "--version"])
def test_an_answer_that_cannot_be_written_is_one_error(equipped, command):
    result = full(equipped, *command.split())
    assert result.returncode == 1, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error[file-system]: could not "), result.stderr
    assert lines[1].endswith("No space left on device")
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


@pytest.mark.parametrize(
    ("command", "code"), [("status", 0), ("pins", 0), ("--version", 0), ("install nosuchfamily", 2)]
)
def test_a_closed_stdout_changes_no_exit_code_and_no_error(equipped, command, code):
    words = [equipped.python, "-m", "selfaug_patcher", *command.split()]
    closed = ["sh", "-c", '"$@" >&-', "sh", *map(str, words)]
    result = subprocess.run(closed, stderr=subprocess.PIPE, text=True, check=False, cwd=equipped.root)
    assert result.returncode == code, result.stderr
    assert result.stderr.startswith("error[" if code else "")
    assert "Traceback" not in result.stderr
    assert code or result.stderr == ""


def test_a_refusal_that_cannot_be_written_as_json_is_told_as_text(equipped):
    equipped.model.write_text(equipped.model.read_text() + "# mine\n")
    result = full(equipped, "install", "--json")
    assert result.returncode == 4
    assert result.stderr.startswith("error[modified-file]")
    assert "Traceback" not in result.stderr
