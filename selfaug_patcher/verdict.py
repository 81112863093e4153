"""`status --model`: does SelfAug act on this model, and if not, what has to be done?"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import checkpoint
from .environment import Environment, Package
from .errors import DONE, FAILED, Problem
from .families import Target
from .refusals import refusals, runtime_refusals
from .state import PATCHED, UNPINNED, State, TargetState

NEVER_TRIED = "never tried here"

# What peft's LoraConfig takes without target_modules: a dict in one of these files, whichever the release has.
_DEFAULTS = "TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING"
_FILES = ("peft/utils/constants.py", "peft/utils/other.py", "peft/mapping.py")

# How a config writes that logits are more than a product with the head's matrix.
_CAP = "final_logit_softcapping"
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class Verdict:
    """The answer for one model.

    Args:
        model: the folder or name that was asked about.
        targets: the files of its family and of peft, as they are now.
        acts: whether a LoRA training of this model goes through SelfAug as things are.
        head: what the config says of the head: ``tied``, ``soft_cap``, ``scale``. What it does not say is left out.
        lora_targets: the modules that LoraConfig takes without ``target_modules``; None if peft has no default for the
            model's type or its table cannot be read.
        refused: why `install` would refuse.
        next: what the user would do now; empty if nothing.
        note: about a model that brings code of its own or has images, or empty.
    """

    model: str
    targets: tuple[TargetState, TargetState]
    acts: bool
    head: dict[str, Any]
    lora_targets: list[str] | None
    refused: list[Problem]
    next: str
    note: str

    @property
    def family(self) -> Target:
        return self.targets[0].target

    @property
    def exit_code(self) -> int:
        """0 if SelfAug acts on the model, 1 if an `install` is missing, 3 and 4 where that would refuse."""
        return DONE if self.acts else max([FAILED, *(problem.exit_code for problem in self.refused)])


def verdict(environment: Environment, state: State, name: str) -> Verdict:
    """The answer for a model in a folder, in the cache or on the hub.

    Raises:
        PatcherError: there is no such model, or no patch for its class: the answer is no, for good.
    """
    config = checkpoint.read(environment, name)
    family, note = checkpoint.family_in(config, name)
    model = next(each for each in state.models if each.target == family)
    targets = (model, state.layer)
    acts = {each.state for each in targets} == {PATCHED} and state.runtime_state == "installed"
    refused = refusals(state, targets) + runtime_refusals(state)
    step = "" if acts else environment.commands.patcher("install", family.family)
    return Verdict(
        model=name,
        targets=targets,
        acts=acts,
        head=head(config),
        lora_targets=lora_targets(state.layer.package, config),
        refused=refused,
        next=refused[0].do if refused else step,
        note=note,
    )


def head(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the head, that of the text side in a model of images and text."""
    text = config.get("text_config")
    said = {**config, **text} if isinstance(text, dict) else config
    scale = next((said[key] for key in _SCALES if said.get(key) is not None), None)
    found = {"tied": said.get("tie_word_embeddings"), "soft_cap": said.get(_CAP), "scale": scale}
    return {key: value for key, value in found.items() if value is not None}


def lora_targets(peft: Package, config: Mapping[str, Any]) -> list[str] | None:
    """peft's default ``target_modules`` for the type in a config, from peft's table, which is read and not run."""
    if peft.site is None:
        return None
    for file in _FILES:
        modules = _table(peft.site / file).get(config.get("model_type"))
        if isinstance(modules, (list, tuple)) and modules:
            return [str(module) for module in modules]
    return None


def _table(file: Path) -> dict[Any, Any]:
    """peft's table, if this file gives it as a literal; else empty."""
    try:
        statements = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return {}
    for statement in statements:
        names = statement.targets if isinstance(statement, ast.Assign) else []
        if any(isinstance(name, ast.Name) and name.id == _DEFAULTS for name in names):
            try:
                table = ast.literal_eval(statement.value)  # type: ignore[attr-defined]  # of an Assign
            except ValueError:
                return {}
            return table if isinstance(table, dict) else {}
    return {}


def trust(target: TargetState) -> str:
    """``pinned``, ``proved here`` or ``never tried here``; empty where the state says that nothing can be tried."""
    return target.trust or (NEVER_TRIED if target.state in (UNPINNED, PATCHED) else "")


def as_json(answer: Verdict) -> dict[str, Any]:
    model = answer.targets[0]
    return {
        "name": answer.model,
        "acts": answer.acts,
        "family": answer.family.family,
        "class": answer.family.class_name,
        "state": model.state,
        "trust": trust(model) or None,
        "head": answer.head,
        "lora_targets": answer.lora_targets,
        "refused": [{"id": p.id, "what": p.what, "found": p.found, "do": p.do} for p in answer.refused],
        "next": answer.next,
        "note": answer.note,
    }


def as_text(answer: Verdict) -> str:
    rows = [("family", f"{answer.family.family} ({answer.family.class_name})")]
    for each in answer.targets:
        label = f"{each.package.name} {each.package.version}".rstrip()
        rows.append((label, ", ".join(filter(None, [each.state, trust(each)]))))
    if answer.head:
        own = "tied to the embeddings" if answer.head.get("tied") else "a matrix of its own"
        tied = own if "tied" in answer.head else ""
        cap = f"soft cap {answer.head['soft_cap']:g}" if "soft_cap" in answer.head else ""
        scale = f"scale {answer.head['scale']:g}" if "scale" in answer.head else ""
        rows.append(("head", ", ".join(filter(None, [tied, cap, scale]))))
    default = ", ".join(answer.lora_targets or []) or "no default of peft's for this type that can be read: name them"
    rows.append(("LoRA targets", f"{default}; with all-linear, every linear layer but the head"))
    rows += [("refused", f"{problem.what}: {problem.found}") for problem in answer.refused]
    rows += [("next", answer.next)] if answer.next else []
    rows += [("note", answer.note)] if answer.note else []
    said = f"SelfAug {'acts' if answer.acts else 'does not act'} on {answer.model}{'' if answer.acts else ' yet'}."
    if answer.refused and not answer.acts:
        said = f"SelfAug does not act on {answer.model}, and install would refuse."
    width = max(len(name) for name, _ in rows) + 2
    lines = [f"  {name:<{width}}" + textwrap.indent(text, " " * (width + 2)).lstrip() for name, text in rows]
    return "\n".join([said, *lines])
