"""The trial of patched files in child processes: `selfaug.trial`, with the files on disk or with texts from memory.

Two children run side by side. One has the patched files and makes every check; the other has the stock files, and
gives the hashes of what must be bit-identical. Nothing is written.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

from . import json_text
from .check import SERVE, TIMEOUT_SECONDS, Check, request
from .environment import Environment

Sources = Mapping[str, tuple[str, bytes]]

_TRIAL = f"""{SERVE}
import importlib, runpy
for name in request["classes"]:
    module, _, cls = name.partition(":")
    bases = [base.__name__ for base in getattr(importlib.import_module(module), cls).__mro__]
    if ("SelfAligned" in bases) == (request["argument"] == "--hashes"):
        raise SystemExit(f"Python loaded the stock file of {{module}} for the patched one, or the other way round")
sys.argv = ["selfaug.trial", request["argument"], *request["classes"]]
runpy.run_module("selfaug.trial", run_name="__main__", alter_sys=True)
"""
_CPU_ONLY = {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


def trial(
    environment: Environment,
    patched: Sources,
    stock: Sources,
    packages: Mapping[str, str],
    classes: Sequence[str],
    report: Callable[[str], None],
) -> list[Check]:
    """Every check of the trial, in the order in which they were made.

    Args:
        patched: module name to path and patched text, to be served from memory; empty where the disk has the patches.
        stock: the same for the stock texts; empty where the disk has the stock files.
        packages: {"selfaug": folder} where the runtime is not installed.
        classes: the model classes, as ``module:class`` (``Target``'s names).
        report: is told the name of each check as soon as it is made.
    """
    with ThreadPoolExecutor(1) as beside:
        other = beside.submit(_lines, environment, stock, packages, classes, "--hashes", _nothing)
        lines, error = _lines(environment, patched, packages, classes, "--json", report)
        stock_lines, stock_error = other.result()
    expected = {line["case"]: line["sha256"] for line in stock_lines}
    checks = []
    for line in lines:
        if "case" in line:
            same = expected.get(line["case"]) == line["sha256"]
            detail = "bit-identical" if same else "expected: what stock gives, bit for bit\nfound:    something else"
            checks.append(Check(line["case"], same, detail))
        else:
            detail = line["found"] if line["ok"] else f"expected: {line['expected']}\nfound:    {line['found']}"
            checks.append(Check(line["name"], line["ok"], detail))
    if error or stock_error or not checks:
        checks.append(Check("trial", False, f"expected: all answers\nfound:    {error or stock_error or 'none'}"))
    return checks


def _lines(
    environment: Environment,
    sources: Sources,
    packages: Mapping[str, str],
    classes: Sequence[str],
    argument: str,
    report: Callable[[str], None],
) -> tuple[list[dict[str, Any]], str]:
    """The JSON objects that a child prints; and what it complained of if it ended before the last one."""
    order = request(sources, packages, classes=list(classes), argument=argument)
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        child = environment.start_code(_TRIAL, stderr=complaints, env=_CPU_ONLY)
        timer = threading.Timer(TIMEOUT_SECONDS, child.kill)
        timer.start()
        assert child.stdin is not None
        assert child.stdout is not None
        with child:
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:  # it may end before it has read all
                stdin.write(order)
            for text in child.stdout:
                line = _object(text)
                if line:
                    lines.append(line)
                    report(str(line.get("name", line.get("case", ""))))
        timer.cancel()
        if lines and lines[-1] == {"done": True}:
            return lines[:-1], ""
        complaints.seek(0)
        last = "\n".join(complaints.read().strip().splitlines()[-6:])
    return lines, last or f"no answer, exit code {child.returncode}"


def _nothing(name: str) -> None:
    return None


def _object(text: str) -> dict[str, Any]:
    """The JSON object in a line; empty for what packages print of their own."""
    try:
        value = json_text.parse(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and value.keys() & {"name", "case", "done"} else {}
