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

from selfaug_patcher import memory, pins, udiff, wheels  # noqa: E402

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


def pytest_terminal_summary(terminalreporter) -> None:
    """What tests had to report, by `record_property`: numbers that are wanted even where everything passes.

    Properties come with the reports of the tests, so that it makes no difference how many processes ran them.
    """
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    told = [each for report in reports if getattr(report, "when", "") == "call" for each in report.user_properties]
    proved, pinned = {value for name, value in told if name == "proved"}, len(pins.load().pins)
    if proved:
        missing = pinned - len(proved)
        hint = f"; {missing} not: no wheel in {wheels.cache()} (SELFAUG_PROVE_ALL=1 fetches them)" if missing else ""
        terminalreporter.write_line(f"pins: {len(proved)} of {pinned} proved from real files{hint}")
    for line in sorted(value for name, value in told if name == "told"):
        terminalreporter.write_line(line)
