"""Running processes that may have loaded the packages before they were patched (found on Linux only)."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")
_SHOWN = 5


def older_than(receipt: Path) -> list[str]:
    """Processes that use this site directory and started before its receipt was written: ``PID (command)``.

    Only those of the same user are seen, and only where they have a compiled library of that directory mapped, as
    everything that imported torch has. A process that started earlier but imports later is named too.
    """
    found = []
    try:
        written = receipt.stat().st_mtime
        libraries = f"{os.path.realpath(receipt.parent.parent)}/"  # what /proc names, whatever link led there
        for entry in sorted(_PROC.iterdir()):
            if not entry.name.isdigit() or int(entry.name) == os.getpid() or _started(entry) > written - 1:
                continue
            if libraries in _text(entry / "maps"):
                command = _text(entry / "cmdline").replace("\0", " ").strip()
                found.append(f"{entry.name} ({command[:60]})")
    except (OSError, ValueError):
        return found
    return found[:_SHOWN]


def _started(process: Path) -> float:
    """When a process started, in seconds since the epoch: its folder in /proc is as old as itself."""
    try:
        return process.stat().st_mtime
    except OSError:
        return float("inf")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
