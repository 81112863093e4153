"""Trials of edited stock files, each in a fork of one process that has imported the packages already: seconds a trial.

    python tests/trial/trials.py < edits.json     {case: {module: [[class, old, new], ...]}}

prints {case: [line of the trial, ...]}. Only pinned files are edited, so the seam and its result are known.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import runpy
import sys
from contextlib import redirect_stdout, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from selfaug_patcher import families, memory, pins  # noqa: E402


def patched_sources() -> dict[str, tuple[str, bytes]]:
    """Module name to path and patched text of the stock files that are installed here."""
    table, sources = pins.load(), {}
    for target in (families.MODELS[0], families.LAYER):
        path = Path(importlib.util.find_spec(target.package).origin).parent.parent / target.path
        sources[target.module] = (str(path), table.patched(target, path.read_bytes()))
    return sources


def edited(text: str, cls: str, old: str, new: str) -> str:
    """``text`` with ``old`` replaced where it stands once, in the class ``cls``."""
    start = re.search(rf"^class {cls}\b", text, re.MULTILINE).start()
    end = re.compile(r"^(class|@|__all__)", re.MULTILINE).search(text, start + 1).start()
    body = text[start:end]
    assert body.count(old) == 1, f"{cls} has {old!r} {body.count(old)} times"
    return text[:start] + body.replace(old, new) + text[end:]


def one(sources: dict[str, tuple[str, bytes]], edits: dict[str, list[list[str]]]) -> list[dict]:
    for module, changes in edits.items():
        path, text = sources[module]
        for change in changes:
            text = edited(text.decode(), *change).encode()
        sources[module] = (path, text)
    memory.install(sources, {"selfaug": str(ROOT / "Code")})
    sys.argv = ["selfaug.trial", "--json"]
    printed = io.StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        runpy.run_module("selfaug.trial", run_name="__main__", alter_sys=True)
    return [json.loads(line) for line in printed.getvalue().splitlines() if line.startswith('{"')]


def in_a_fork(sources: dict[str, tuple[str, bytes]], edits: dict[str, list[list[str]]]) -> list[dict]:
    readable, writable = os.pipe()
    if os.fork() == 0:
        try:
            answer = one(sources, edits)
        except BaseException as error:
            answer = [{"name": "trial", "ok": False, "expected": "an answer", "found": repr(error)}]
        with open(writable, "w") as pipe:
            pipe.write(json.dumps(answer))
        os._exit(0)
    os.close(writable)
    with open(readable) as pipe:
        answer = json.loads(pipe.read())
    os.wait()
    return answer


if __name__ == "__main__":
    # nothing of these imports what is edited
    import accelerate  # noqa: F401
    import torch  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    everything = patched_sources()
    assert not set(everything) & set(sys.modules)
    print(json.dumps({case: in_a_fork(dict(everything), edits) for case, edits in json.load(sys.stdin).items()}))
