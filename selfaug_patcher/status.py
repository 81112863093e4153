"""`status`: per target its path, version and state, and what to do next."""

from __future__ import annotations

from typing import Any

from .environment import Environment
from .errors import DONE, FAILED
from .errors import MODIFIED as EXIT_MODIFIED
from .errors import UNSUPPORTED as EXIT_UNSUPPORTED
from .install import notes as install_notes
from .payload import Runtime
from .pins import PinTable
from .processes import older_than
from .refusals import changed_modules, refusals
from .revert import sites
from .state import MODIFIED, PATCHED, STOCK, UNSUPPORTED, State, TargetState, inspect
from .store import Store
from .transaction import locked

_EXIT = {MODIFIED: EXIT_MODIFIED, UNSUPPORTED: EXIT_UNSUPPORTED}


def status(environment: Environment, table: PinTable, runtime: Runtime) -> tuple[State, list[str]]:
    """The state of the environment, and notes; undoes an interrupted run first, if there was one and this user may."""
    untidy = [store for store in sites(environment) if store.needs_tidying()]
    found = [
        f"{store.root} has the journal of a run that has not ended: it is at work, or whoever may write there undoes "
        f"it with {environment.commands.patcher('status')}."
        for store in untidy
        if not store.writable()
    ]
    if untidy and not found:
        with locked(untidy, wait=0) as recovered:
            found = recovered or ["Temporary files of an interrupted run were removed."]
    state = inspect(environment, table, runtime)
    return state, found + install_notes(state) + _notes(state)


def exit_code(state: State) -> int:
    """0 if all is stock or all is patched, 1 if it is neither, 3 and 4 where a target is unsupported or modified."""
    codes = [_EXIT.get(target.state, DONE) for target in state.targets]
    return max(codes) or (DONE if coherent(state) else FAILED)


def coherent(state: State) -> bool:
    """Whether all of the environment is stock, or all of it patched; a peft that is not installed fits both."""
    states = {target.state for target in state.targets if target is state.model or target.package.site}
    if states == {PATCHED}:
        return state.runtime_state == "installed" and not any(target.older for target in state.targets)
    return states == {STOCK} and state.runtime_state == "missing"


def as_json(state: State, notes: list[str]) -> dict[str, Any]:
    targets = [
        {
            "name": target.target.name,
            "path": str(target.path) if target.path else None,
            "version": target.package.version or None,
            "state": target.state,
            "sha256": target.sha256 or None,
            "next": next_step(target, state),
        }
        for target in state.targets
    ]
    path = str(state.runtime_path) if state.runtime_path else None
    runtime = {"path": path, "state": state.runtime_state, "version": state.runtime.version}
    return {"targets": targets, "runtime": runtime, "python": state.environment.python, "notes": notes}


def as_text(state: State, notes: list[str]) -> str:
    lines = []
    for target in state.targets:
        label = f"{target.package.name} {target.package.version}".rstrip()
        what = "patched by an older SelfAug" if target.older else target.state
        lines += [f"{target.target.name:<20}{what:<13}{label}", f"{'':<20}{target.path or 'not installed'}"]
        step = next_step(target, state)
        if step:
            lines.append(f"{'':<20}next: {step}")
    version = f"selfaug {state.runtime.version}" if state.runtime_state == "installed" else ""
    lines.append(f"{'runtime':<20}{state.runtime_state:<13}{version}".rstrip())
    if state.runtime_path:
        lines.append(f"{'':<20}{state.runtime_path}")
    lines += [f"{'':<20}next: {step}" for step in [_runtime_step(state)] if step]
    return "\n".join(lines + [f"note: {note}" for note in notes])


def next_step(target: TargetState, state: State) -> str:
    """What the user would do about this target; empty if nothing."""
    commands, package = state.environment.commands, target.package
    mine = [problem.do for problem in refusals(state, [target]) if problem.do]
    if package.site is None and not package.problems:
        newest = state.table.of(target.target.name)[-1].version
        return f"{commands.install(f'{package.name}<={newest}')} && {commands.patcher('install')}"
    if mine:
        return mine[0]
    to_do = state.site is not None and (target.state == STOCK or target.older)
    return commands.patcher("install") if to_do else ""


def _runtime_step(state: State) -> str:
    commands = state.environment.commands
    if state.runtime_state == "leftover":
        return f"{commands.patcher('install')}, or {commands.patcher('revert')}"
    if state.runtime_state == "modified":
        return (
            commands.patcher("revert", "--keep-edits DIR")
            if state.model.store.receipt()
            else "move it away: it is not SelfAug's"
        )
    out_of_step = state.runtime_state in ("missing", "older") and any(t.state == PATCHED for t in state.targets)
    return commands.patcher("install") if out_of_step else ""


def _notes(state: State) -> list[str]:
    revert = state.environment.commands.patcher("revert")
    notes = [f"{state.site}/selfaug: {line}" for line in changed_modules(state)]
    patched = [target for target in state.targets if target.state == PATCHED and target.package.site]
    for store in sites(state.environment):
        if store.exists and store.site not in {t.package.site for t in state.targets}:
            notes.append(f"SelfAug was left behind in {store.site}; {revert} removes it.")
    hidden = [Store(site) for site in state.environment.path if Store(site).exists]
    for store in hidden:
        if store not in sites(state.environment):
            notes.append(f"SelfAug is also in {store.site}, hidden by other copies of the packages.")
    if patched and state.environment.conda:
        notes.append("`conda doctor` will list the patched files as altered; that is meant, and revert ends it.")
    if patched:
        for process in older_than(patched[0].store.receipt_path):
            notes.append(
                f"Process {process} started before the last install: it runs the old code until it is restarted."
            )
    return notes
