"""The family of a model in a folder, in the hub's cache or on the hub, by its config.json."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from . import json_text
from .environment import Environment
from .errors import UNSUPPORTED, USAGE, PatcherError, Problem
from .families import MODELS, Target

# transformers of that environment fetches the file: with its cache, its token, its endpoint. No model code is run.
_CONFIG = """
import json
try:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import cached_file
    with open(cached_file(json.load(sys.stdin), "config.json"), encoding="utf-8") as file:
        config = json.load(file)
except Exception as error:
    sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))
config["AutoModelForCausalLM"] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.get("model_type"))
print(json.dumps(config))
"""
_SECONDS = 120


def family_of(environment: Environment, name: str) -> tuple[Target, str]:
    """(the file to patch for this model, a note for the user or nothing).

    Args:
        name: a folder, or a name on the hub.

    Raises:
        PatcherError: there is no such model, or its class is not one that SelfAug can patch.
    """
    return family_in(read(environment, name), name)


def family_in(config: dict[str, Any], name: str) -> tuple[Target, str]:
    """The same, from the config that `read` gave for ``name``."""
    classes = [each for each in config.get("architectures") or [] if isinstance(each, str)]
    family = str(config.get("model_type", ""))
    for target in MODELS:
        if not set(target.class_names).isdisjoint(classes) or (not classes and target.family == family):
            return target, _note(name, config)
    for target in MODELS:  # the text side of a model of images and text, such as Qwen3.5
        if target.class_name == config.get("AutoModelForCausalLM"):
            whole = ", ".join(classes) or family
            return target, f"{name} is {whole}. SelfAug acts in {target.class_name}, which AutoModelForCausalLM loads."
    raise PatcherError(
        Problem(
            id="unknown-family",
            what=f"{name} is of a family that SelfAug cannot patch",
            expected=f"a model of one of these families: {', '.join(target.family for target in MODELS)}",
            found=", ".join(classes) or f"model_type {family or '(none)'}",
            do="train a model of one of them",
            exit_code=UNSUPPORTED,
        )
    )


def _note(name: str, config: dict[str, Any]) -> str:
    if "AutoModelForCausalLM" not in (config.get("auto_map") or {}):
        return ""
    return f"{name} brings code of its own. With trust_remote_code=True that code is loaded, and SelfAug does not act."


def read(environment: Environment, name: str) -> dict[str, Any]:
    """The config.json of a model, with the class that AutoModelForCausalLM has for it.

    Raises:
        PatcherError: there is no such model, or its config cannot be read.
    """
    try:
        result = environment.run_code(_CONFIG, input=json.dumps(name), timeout=_SECONDS)
        complaint = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        config = json_text.parse(result.stdout.strip().splitlines()[-1]) if result.returncode == 0 else None
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        config, complaint = None, f"no answer within {_SECONDS} seconds, or no JSON"
    if not isinstance(config, dict):
        if complaint == "ModuleNotFoundError: No module named 'transformers'":
            what, seen = "transformers, which reads a model's config, is not installed", f"none in {environment.python}"
            do = f"{environment.commands.install('transformers')}, then the same command again"
            raise PatcherError(Problem("not-installed", what, "transformers", seen, do))
        expected = "a folder with a config.json, or the name of a model in the cache or on the hub"
        do = "check the name; in a folder, whether save_pretrained has written config.json"
        found = complaint if os.path.isdir(name) else f"no such folder, and for a name on the hub: {complaint}"
        what = f"cannot read the config of {name or repr(name)}"
        raise PatcherError(Problem("no-config", what, expected, found, do, USAGE))
    return config
