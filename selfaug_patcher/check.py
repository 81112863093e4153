"""What a check is; and the first one, by importing: a child process of the environment loads the patched files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import memory
from .environment import Environment
from .errors import PatcherError, Problem
from .pins import PinTable
from .plan import Patch, texts

TIMEOUT_SECONDS = 600

_STALE = 42
_IMPORT = """
import importlib, importlib.util
patched = True
for name, cls, base in request["classes"]:
    if importlib.util.find_spec(name.split(".")[0]):
        bases = getattr(importlib.import_module(name), cls).__mro__
        patched = patched and getattr(importlib.import_module("selfaug.hooks"), base) in bases
"""
_IMPORT_STOCK = """
import importlib, importlib.util
for name, cls, base in request["classes"]:
    if importlib.util.find_spec(name.split(".")[0]):
        importlib.import_module(name)
"""
_PATCHED = f"""
import json
request = json.load(sys.stdin)
{_IMPORT}
if not patched:
    sys.exit({_STALE})
"""

# For a child that serves modules from memory; it reads {"loader": memory.py's text, "modules": memory.encode(...)}.
SERVE = """
import json
request = json.load(sys.stdin)
memory = {"__name__": "memory"}
exec(request["loader"], memory)
memory["install"](*memory["decode"](request["modules"]))
"""


@dataclass(frozen=True)
class Check:
    """One thing that must hold. ``detail`` says what was seen, in one line or several; ``do`` what to do about it."""

    name: str
    ok: bool
    detail: str = ""
    do: str = ""

    def __str__(self) -> str:
        first, *more = [*self.detail.splitlines(), *([f"do:       {self.do}"] if self.do else [])] or [""]
        return "\n".join(
            [f"{'ok' if self.ok else 'FAIL':<6}{self.name}: {first}", *(f"{'':<6}{line}" for line in more)]
        )


def request(sources: Mapping[str, tuple[str, bytes]], packages: Mapping[str, str], **more: object) -> str:
    """What a child that begins with `SERVE` reads."""
    loader = Path(memory.__file__).read_text(encoding="utf-8")
    return json.dumps({"loader": loader, "modules": memory.encode(sources, packages), **more})


def check_import(environment: Environment, patches: Sequence[Patch], table: PinTable) -> str:
    """Import the patched files in a child process.

    Args:
        patches: the files; their stock texts tell a fault of the patch from one that was there before.
        table: of the seams, which name the base classes.

    Returns:
        A note for the user where the packages do not import here, patched or not; else nothing.

    Raises:
        PatcherError: the import fails and that of the stock files does not, or what it loads is not the patched code.
    """
    classes = [
        (patch.target.target.module, name, table.seams[patch.target.target.package].base)
        for patch in patches
        for name in patch.class_names
    ]
    order = json.dumps({"classes": classes})
    patched = _run(environment, _PATCHED, input=order)
    if patched.returncode == 0:
        return ""
    complaint = patched.stderr.strip().splitlines()[-6:]
    if patched.returncode == _STALE:
        complaint = ["Python loaded other code than that of the patched files: is there bytecode in another folder?"]
    elif (
        _run(
            environment, f"{SERVE}\n{_IMPORT_STOCK}", input=request(texts(patches, "stock"), {}, classes=classes)
        ).returncode
        != 0
    ):
        return f"transformers and peft do not import together here, patched or not: {''.join(complaint[-1:])}"
    raise PatcherError(
        Problem(
            id="import-failed",
            what="transformers and peft import together in this environment, but not once patched",
            expected="an import without an error",
            found="\n".join(complaint) or f"exit code {patched.returncode}",
            do="please report it, with the versions of transformers, peft and torch",
        )
    )


def _run(environment: Environment, code: str, **options: object) -> subprocess.CompletedProcess[str]:
    try:
        return environment.run_code(code, timeout=TIMEOUT_SECONDS, **options)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess([], 1, "", f"no answer within {TIMEOUT_SECONDS} seconds")
