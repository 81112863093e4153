"""`verify`: is what is installed what was meant, does it do what it should, and nothing where it should not?

First the hashes; then, where they are right, the trial (`trial`) of what is installed.
"""

from __future__ import annotations

import os
import subprocess
from typing import Callable

from .check import TIMEOUT_SECONDS, Check
from .environment import Environment
from .errors import PatcherError
from .payload import Runtime
from .pins import PinTable
from .plan import patch
from .proof import try_out
from .refusals import changed_modules, refusals
from .state import PATCHED, State, TargetState, inspect
from .status import next_steps

VARIABLES = "SELFAUG_* variables"
_SETTINGS = """
from selfaug import config
try:
    config.read()
except config.SettingError as error:
    print("setting:", error)
"""


def verify(
    environment: Environment, table: PinTable, runtime: Runtime, report: Callable[[str], None]
) -> tuple[State, list[Check]]:
    """All checks, in the order in which they were made; those that need a sound installation, only where one is."""
    state = inspect(environment, table, runtime)
    checks = hashes(state)
    if all(check.ok for check in checks) and state.site is not None:
        if state.layer.package.site is None:
            return state, [*checks, Check("trial", True, "left out: peft is not installed, SelfAug is idle")]
        checks += [*_variables(environment), *_trial(state, report)]
    return state, checks


def hashes(state: State) -> list[Check]:
    """Whether both targets and the runtime are exactly those of this SelfAug."""
    checks = []
    steps, runtime_step = next_steps(state)
    for target in state.in_use():
        step = steps[target.target.name]
        if target.package.site is None and target is state.layer:
            continue
        ok = target.state == PATCHED and not target.older
        detail = f"sha256 {target.sha256[:16]}..., {target.trust or 'not pinned'}: {_release(target)}"
        checks.append(Check(f"hash of {target.target.name}", ok, detail if ok else _cause(target, state), step))
    ok = state.runtime_state == "installed"
    path = f"{state.runtime_path}: " if state.runtime_path else ""
    detail = f"selfaug {state.runtime.version}, {len(state.runtime.files)} files"
    changes = "; ".join([f"{path}{state.runtime_state}", *changed_modules(state)])
    # where it is only missing, what is to be done about the targets brings it
    return [*checks, Check("hashes of the runtime", ok, detail if ok else changes, runtime_step)]


def _variables(environment: Environment) -> list[Check]:
    """A check that does not hold if a SELFAUG_* variable is wrong, with which every training would stop; else none. The
    trial goes on without the variables.
    """
    if not any(name.startswith("SELFAUG") for name in os.environ):
        return []  # the usual case, which need not import torch once more
    try:
        said = environment.run_code(_SETTINGS, timeout=TIMEOUT_SECONDS).stdout
    except (OSError, subprocess.TimeoutExpired):  # whatever is wrong with the interpreter, the trial tells
        return []
    do = "correct or unset that variable; SelfAug itself is checked without it"
    _, begins, wrong = said.rpartition("setting: ")  # site customisations may print before it
    return [Check(VARIABLES, False, wrong.strip(), do)] if begins else []


def _release(target: TargetState) -> str:
    versions = target.proved or {target.package.name: target.package.version}
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _cause(target: TargetState, state: State) -> str:
    """Why a target is not as it should be."""
    for problem in refusals(state, [target]):
        actual = problem.found.replace("\n", f"\n{'':<10}")
        return f"{problem.what}\nexpected: {problem.expected}\nfound:    {actual}"
    what = "patched by an older SelfAug" if target.older else f"{target.state}, not patched"
    return f"{what}: {target.path}, {target.package.name} {target.package.version}, sha256 {target.sha256}"


def _trial(state: State, report: Callable[[str], None]) -> list[Check]:
    """The trial of what is installed, against the stock files served from memory."""
    try:
        patches = [patch(target, state) for target in state.in_use()]
    except PatcherError as error:
        return [Check("trial", False, error.problems[0].what, error.problems[0].do)]
    return try_out(state, patches, [each for each in patches if each.is_model], report, in_memory=False)
