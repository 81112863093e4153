"""The proof by importing: a child process of the environment loads both patched files."""

from __future__ import annotations

import subprocess

from .environment import Environment
from .errors import PatcherError, Problem
from .pins import TARGETS

TIMEOUT_SECONDS = 600

_IMPORT = """
import importlib, importlib.util
module = importlib.import_module("transformers.models.qwen2.modeling_qwen2")
patched = "SelfAligned" in [base.__name__ for base in module.Qwen2ForCausalLM.__mro__]
if patched and importlib.util.find_spec("peft"):
    module = importlib.import_module("peft.tuners.lora.layer")
    patched = hasattr(module.LoraLayer, "selfaug_reference")
if not patched:
    raise SystemExit("Python loaded other code than the patched " + module.__file__)
"""


def check_import(environment: Environment) -> None:
    """Import both patched files in a child process.

    Raises:
        PatcherError: the import fails, or what it loads is not the patched code.
    """
    try:
        result = environment.run_code(_IMPORT, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        raise PatcherError(_problem(f"no answer within {TIMEOUT_SECONDS} seconds")) from None
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        raise PatcherError(_problem("\n".join(lines[-6:]) or f"exit code {result.returncode}"))


def _problem(found: str) -> Problem:
    packages = " and ".join(target.package for target in TARGETS)
    return Problem(
        id="import-failed",
        what=f"{packages} do not import together in this environment once patched",
        found=found,
        do="see whether they import unpatched: python -c 'import transformers.models.qwen2.modeling_qwen2, peft'",
    )
