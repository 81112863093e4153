"""Tests see this checkout's Code/ as `selfaug` and, where torch is installed, patched transformers and peft: patched
in memory from the pinned diffs, so that nothing is written into the environment that the tests run in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runtime")]

from selfaug_patcher import memory, pins, udiff  # noqa: E402

for name in [name for name in os.environ if name.startswith("SELFAUG")]:
    if name not in ("SELFAUG_WHEEL_CACHE", "SELFAUG_PROVE_ALL"):  # those are about the tests themselves
        del os.environ[name]
os.environ.setdefault("OMP_NUM_THREADS", "1")


def _patched() -> dict[str, tuple[str, bytes]]:
    """Module name to (path, patched source) for whichever of the two packages is installed."""
    table = pins.load()
    found = {}
    for target in pins.TARGETS:
        package = importlib.util.find_spec(target.package)
        if package is None or package.origin is None:
            continue
        path = Path(package.origin).parent.parent / target.path
        stock = path.read_bytes()
        pin = table.by_stock(target.name, hashlib.sha256(stock).hexdigest())
        assert pin is not None, f"{path} is not stock: the tests need stock packages of a pinned release"
        name = target.path[: -len(".py")].replace("/", ".")
        found[name] = (str(path), udiff.apply(table.patch(pin), stock))
    return found


memory.install(_patched(), {"selfaug": str(ROOT / "Code")})
