"""What a user is told by `python -m selfaug.selftest`; that it passes on patched packages, tests/patcher has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ON_STOCK_PACKAGES = """
import json
from selfaug_patcher import memory
memory.install({}, {"selfaug": "Code"})
from selfaug import selftest
print(json.dumps({check["name"]: check["ok"] for check in selftest.checks()}))
"""


def test_on_stock_packages_only_what_stock_does_too_is_ok():
    command = [sys.executable, "-c", ON_STOCK_PACKAGES]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert [name for name, ok in found.items() if ok] == ["SELFAUG=0 gives stock's loss"]
    assert len(found) == 6
