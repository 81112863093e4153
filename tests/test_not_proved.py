"""A run of the tests ends with what it did not prove and the commands that prove it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import not_proved
import pytest

ROOT = Path(__file__).resolve().parents[1]


def reasons() -> list[str]:
    """Every reason for a skip in the tests, as text; what is filled in at run time stands as X."""
    found = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
            if name == "importorskip":
                what = node.args[0].value if isinstance(node.args[0], ast.Constant) else "X"
                found.append(f"could not import '{what}': No module named '{what}'")
            elif name in ("skip", "skipif"):
                values = [word.value for word in node.keywords if word.arg == "reason"] or node.args[-1:]
                found += [text(value) for value in values if not isinstance(value, (ast.Call, ast.Subscript))]
    return found


def text(value: ast.expr) -> str:
    if isinstance(value, ast.Constant):
        return value.value
    assert isinstance(value, ast.JoinedStr), ast.dump(value)
    return "".join(part.value if isinstance(part, ast.Constant) else "1" for part in value.values)


@pytest.mark.parametrize("reason", sorted(set(reasons())))
def test_for_every_reason_to_skip_there_is_a_command(reason):
    what, command = not_proved.cause(f"Skipped: {reason}")
    assert what
    assert command


def test_all_kinds_of_skips_are_found_in_the_tests():
    assert {"no wheel in the cache", "strace is not installed"} <= set(reasons())
    assert "could not import 'bitsandbytes': No module named 'bitsandbytes'" in reasons()
    assert len(set(reasons())) > 20


def test_an_unknown_reason_is_shown_as_it_is():
    assert not_proved.line(["Skipped: the moon is not full"]) == (
        "NOT proved by this run: 1 skipped: 1 for want of the moon is not full"
    )
    assert not_proved.line([]) == ""


@pytest.mark.parametrize("processes", [(), ("-n", "1")], ids=["one process", "xdist"])
def test_a_run_without_wheels_ends_with_the_command_that_fetches_them(tmp_path, processes):
    if processes:
        pytest.importorskip("xdist")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "SELFAUG"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *processes]
    command += ["tests/pins/test_adapter_switch.py"]
    environment["SELFAUG_WHEEL_CACHE"] = str(tmp_path)
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    last = [line for line in result.stdout.splitlines() if line.startswith("NOT proved")]
    assert len(last) == 1, result.stdout
    skipped = int(re.search(r"(\d+) skipped", result.stdout.splitlines()[-1])[1])
    command = "SELFAUG_PROVE_ALL=1 python -m pytest tests/pins tests/patcher"
    assert last == [f"NOT proved by this run: {skipped} skipped: {skipped} for want of wheels ({command})"]
