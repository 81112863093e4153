"""`verify`: is what is installed what was meant, does it do what it should, and nothing where it should not?

Three parts: the hashes; the runtime's own functional self-test in a child process; and a set of computations that must
be bit-identical with stock, run once on the patched files and once with their stock text served from memory.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from .check import SERVE, TIMEOUT_SECONDS, Check, request
from .environment import Environment
from .payload import Runtime
from .pins import PinTable
from .refusals import changed_modules, refusals
from .state import PATCHED, State, TargetState, inspect
from .status import next_steps
from .store import RUNTIME, read

_SELF_TEST = f"""
import runpy
sys.argv = ["selftest", "--json"]
runpy.run_module("{RUNTIME}.selftest", run_name="__main__", alter_sys=True)
"""

_DIGESTS = f"""{SERVE}
import runpy
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
if ("SelfAligned" in [base.__name__ for base in Qwen2ForCausalLM.__mro__]) == request["stock"]:
    raise SystemExit("Python loaded the stock file for the patched one, or the other way round")
sys.argv = [request["selftest"], "--digest"]
runpy.run_path(request["selftest"], run_name="__main__")
"""


def verify(environment: Environment, table: PinTable, runtime: Runtime) -> tuple[State, list[Check]]:
    """All checks, in the order in which they were made; those that need a sound installation, only where one is."""
    state = inspect(environment, table, runtime)
    checks = hashes(state)
    if all(check.ok for check in checks) and state.site is not None:
        if state.targets[1].package.site is None:
            return state, [*checks, Check("self-test", True, "left out: peft is not installed, SelfAug is idle")]
        checks += _self_test(environment)
        checks += _same_as_stock(state, state.site / RUNTIME / "selftest.py")
    return state, checks


def hashes(state: State) -> list[Check]:
    """Whether both targets and the runtime are exactly those of this SelfAug."""
    checks = []
    steps, runtime_step = next_steps(state)
    for target, step in zip(state.targets, steps):
        if target.package.site is None and target is not state.model:
            continue
        ok = target.state == PATCHED and not target.older
        detail = f"sha256 {target.sha256[:16]}..., as pinned for {target.package.name} {target.package.version}"
        checks.append(Check(f"hash of {target.target.name}", ok, detail if ok else _cause(target, state), step))
    ok = state.runtime_state == "installed"
    path = f"{state.runtime_path}: " if state.runtime_path else ""
    detail = f"selfaug {state.runtime.version}, {len(state.runtime.files)} files"
    found = "; ".join([f"{path}{state.runtime_state}", *changed_modules(state)])
    # where it is only missing, what is to be done about the targets brings it
    return [*checks, Check("hashes of the runtime", ok, detail if ok else found, runtime_step)]


def _cause(target: TargetState, state: State) -> str:
    """Why a target is not as it should be."""
    for problem in refusals(state, [target]):
        found = problem.found.replace("\n", f"\n{'':<10}")
        return f"{problem.what}\nexpected: {problem.expected}\nfound:    {found}"
    what = "patched by an older SelfAug" if target.older else f"{target.state}, not patched"
    return f"{what}: {target.path}, {target.package.name} {target.package.version}, sha256 {target.sha256}"


def _self_test(environment: Environment) -> list[Check]:
    answer, error = _json(environment, _SELF_TEST)
    try:
        found = [Check(str(c["name"]), bool(c["ok"]), str(c["detail"])) for c in answer["checks"]]
    except (KeyError, TypeError):
        return [Check("self-test", False, error or "gave no answer")]
    return found or [Check("self-test", False, "checked nothing")]


def _same_as_stock(state: State, selftest: Path) -> list[Check]:
    """Compare the self-test's digests on the patched files with those on the stock ones."""
    sources = {}
    for target in state.targets:
        stock = target.stock_content(state.table)
        content = read(stock) if isinstance(stock, Path) else stock
        if content is None:
            return [Check("as stock", False, f"the stock file of {target.package.name} is not known")]
        sources[target.target.module] = (str(target.path), content)
    patched, error = _digests(state.environment, selftest, {})
    stock_digests, stock_error = _digests(state.environment, selftest, sources)
    if not isinstance(patched, dict) or not isinstance(stock_digests, dict) or not patched:
        return [Check("as stock", False, error or stock_error or "the self-test gave no digests")]
    names = sorted(set(patched) | set(stock_digests))
    return [
        Check(f"as stock: {name}", same, "bit-identical" if same else "differs")
        for name in names
        for same in [patched.get(name) == stock_digests.get(name) and name in patched]
    ]


def _digests(environment: Environment, selftest: Path, sources: dict[str, tuple[str, bytes]]) -> tuple[Any, str]:
    """The self-test's digests; it is run by its path, so that nothing else of SelfAug is imported."""
    order = request(sources, selftest=str(selftest), stock=bool(sources))
    return _json(environment, _DIGESTS, input=order)


def _json(environment: Environment, code: str, **options: Any) -> tuple[Any, str]:
    """The last line that a child prints, as JSON; and, where that is none, the end of what it complained about."""
    try:
        result = environment.run_code(code, timeout=TIMEOUT_SECONDS, **options)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {TIMEOUT_SECONDS} seconds"
    complaint = "\n".join(result.stderr.strip().splitlines()[-6:]) or f"exit code {result.returncode}"
    try:
        return json.loads(result.stdout.strip().splitlines()[-1]), complaint
    except (IndexError, ValueError):
        return None, complaint
