"""`status`: per target its path, version and state, and what to do next."""

from __future__ import annotations

import os
import re
import textwrap
from pathlib import Path
from typing import Any

from .environment import Environment
from .errors import DONE, FAILED, NOT_WRITABLE, PatcherError, Problem
from .errors import MODIFIED as EXIT_MODIFIED
from .errors import UNSUPPORTED as EXIT_UNSUPPORTED
from .install import notes as install_notes
from .install import plan
from .payload import Runtime
from .pins import PinTable
from .proof import changed
from .refusals import all_refusals, changed_modules, refusals
from .revert import sites
from .state import MODIFIED, PATCHED, STOCK, UNPINNED, UNSUPPORTED, State, TargetState, inspect
from .store import Store
from .transaction import locked

_PROC, _PID = Path("/proc"), re.compile(r"[0-9]+")
_SHOWN = 5

_EXIT = {MODIFIED: EXIT_MODIFIED, UNSUPPORTED: EXIT_UNSUPPORTED}


def status(environment: Environment, table: PinTable, runtime: Runtime) -> tuple[State, list[str]]:
    """The state of the environment, and notes; undoes an interrupted run first, if there was one and this user may."""
    untidy = [store for store in sites(environment) if store.needs_tidying()]
    lines = [
        f"{store.root} has the journal of a run that has not ended: it is at work, or whoever may write there undoes "
        f"it with {environment.commands.patcher('status')}."
        for store in untidy
        if not store.writable()
    ]
    if untidy and not lines:
        with locked(untidy, wait=0) as recovered:
            lines = recovered or ["Temporary files of an interrupted run were removed."]
    state = inspect(environment, table, runtime)
    return state, lines + install_notes(state) + _notes(state)


def exit_code(state: State) -> int:
    """0 if all is stock or all is patched, 1 if it is neither, 3 and 4 where a target is unsupported or modified."""
    codes = [_EXIT.get(target.state, DONE) for target in state.in_use()]
    return max(codes) or (DONE if coherent(state) else FAILED)


def coherent(state: State) -> bool:
    """Whether all that is in use is stock, or all of it patched; a peft that is not installed fits both."""
    in_use = [target for target in state.in_use() if target is not state.layer or target.package.site]
    states = {target.state for target in in_use}
    if states == {PATCHED}:
        return state.runtime_state == "installed" and not any(target.older for target in in_use)
    return states <= {STOCK, UNPINNED} and state.runtime_state == "missing"


def as_json(state: State, notes: list[str]) -> dict[str, Any]:
    steps, _ = next_steps(state)
    targets = [
        {
            "name": target.target.name,
            "path": str(target.path) if target.path else None,
            "version": target.package.version or None,
            "state": target.state,
            "trust": target.trust or None,
            "proved_with": target.proved,
            "sha256": target.sha256 or None,
            "next": steps[target.target.name],
        }
        for target in _shown(state)
    ]
    others = {each.target.family: each.state for each in state.models if each.sha256 and each not in _shown(state)}
    path = str(state.runtime_path) if state.runtime_path else None
    runtime = {"path": path, "state": state.runtime_state, "version": state.runtime.version}
    python = state.environment.python
    return {"targets": targets, "other_families": others, "runtime": runtime, "python": python, "notes": notes}


def as_text(state: State, notes: list[str]) -> str:
    """Details of the targets in use, what differs from stock elsewhere, and the names of all other families."""
    steps, runtime_step = next_steps(state)
    shown = _shown(state)
    others = [each.target.family for each in state.targets if each not in shown and each.state in (STOCK, UNPINNED)]
    width = max([20, *(len(each.target.name) + 2 for each in shown)])
    lines = []
    for target in shown:
        label = ", ".join(filter(None, [f"{target.package.name} {target.package.version}".rstrip(), target.trust]))
        what = "patched by an older SelfAug" if target.older else target.state
        lines.append(f"{target.target.name:<{width}}{what:<13}{label}")
        lines.append(f"{'':<{width}}{target.path or 'not installed'}")
        lines += [f"{'':<{width}}why:  {problem.what}: {problem.found}" for problem in _unsupported(target, state)]
        if steps[target.target.name]:
            lines.append(f"{'':<{width}}next: {steps[target.target.name]}")
    version = f"selfaug {state.runtime.version}" if state.runtime_state == "installed" else ""
    lines.append(f"{'runtime':<{width}}{state.runtime_state:<13}{version}".rstrip())
    if state.runtime_path:
        lines.append(f"{'':<{width}}{state.runtime_path}")
    if runtime_step:
        lines.append(f"{'':<{width}}next: {runtime_step}")
    if others:
        lines.append(f"{'other families':<{width}}stock; `install FAMILY ...` patches these, `install --all` all:")
        lines += [f"{'':<{width}}{line}" for line in textwrap.wrap(", ".join(others), 100)]
    return "\n".join(lines + [f"note: {note}" for note in notes])


def _shown(state: State) -> list[TargetState]:
    """The targets in use, and any other that is neither stock nor patched."""
    return [each for each in state.targets if each in state.in_use() or each.state == MODIFIED]


def next_steps(state: State) -> tuple[dict[str, str], str]:
    """What the user would do about each target, by name, and about the runtime; empty where nothing. Never an `install`
    that would refuse; of a release that is not pinned, only the trial tells."""
    try:
        plan(state)
        refused: tuple[Problem, ...] = ()
    except PatcherError as error:
        refused = error.problems
    steps = dict.fromkeys((target.target.name for target in state.targets), "")
    others = all_refusals(state)  # that the steps so far do not remove
    for target in state.in_use():
        name = target.target.name
        own = refusals(state, [target])
        release = _other_release(target, state, own)
        if own:
            others = [problem for problem in others if problem not in own]
        if release:
            commands = state.environment.commands
            steps[name] = " && ".join([commands.install(release), *([] if others else [commands.patcher("install")])])
        else:
            steps[name] = _step(target, state, own, refused)
            others += own
    return steps, _runtime_step(state, refused)


def _other_release(target: TargetState, state: State, own: list[Problem]) -> str:
    """The release to install where there is none, or where another one is all that is wrong."""
    package, name = target.package, target.target.name
    if package.site is None and not package.problems:
        return f"{package.name}<={state.table.pinned(name)[-1].version}"
    if [problem.id for problem in own] == ["unpinned-release"]:
        return f"{package.name}=={state.table.nearest(name, package.version).version}"
    return ""


def _step(target: TargetState, state: State, own: list[Problem], refused: tuple[Problem, ...]) -> str:
    if own:
        return own[0].do
    if all_refusals(state) or not (target.state in (STOCK, UNPINNED) or target.older):
        return ""
    return refused[0].do if refused else state.environment.commands.patcher("install")


def _runtime_step(state: State, refused: tuple[Problem, ...]) -> str:
    commands = state.environment.commands
    if state.runtime_state == "modified":
        return (
            commands.patcher("revert", "--keep-edits DIR")
            if state.store.receipt()
            else "move it away: it is not SelfAug's"
        )
    closed = [problem.do for problem in refused if problem.exit_code == NOT_WRITABLE]
    if state.runtime_state == "leftover":
        both = [commands.patcher("install"), commands.patcher("revert")]
        return closed[0] if closed else ", or ".join(both[1:] if refused else both)
    out_of_step = state.runtime_state in ("missing", "older") and any(t.state == PATCHED for t in state.targets)
    return commands.patcher("install") if out_of_step and not refused else ""


def _unsupported(target: TargetState, state: State) -> list[Problem]:
    return [problem for problem in refusals(state, [target]) if problem.exit_code == EXIT_UNSUPPORTED]


def _notes(state: State) -> list[str]:
    revert = state.environment.commands.patcher("revert")
    notes = [f"{state.site}/selfaug: {line}" for line in changed_modules(state)]
    patched = [target for target in state.targets if target.state == PATCHED and target.package.site]
    commands = state.environment.commands
    for target in patched:
        changes = changed(target, state.environment.versions())
        if changes:
            notes.append(
                f"{target.target.name} was proved here with {'; with '.join(changes)}: "
                f"run {commands.patcher('verify')}; {commands.patcher('install')} then keeps the new proof."
            )
        elif not target.trust and not target.older:
            notes.append(
                f"{target.target.name} is not pinned, and no record says that it was proved: run "
                f"{commands.patcher('install')}."
            )
    for store in sites(state.environment):
        if store.exists and store.site not in {t.package.site for t in state.targets}:
            notes.append(f"SelfAug was left behind in {store.site}; {revert} removes it.")
    hidden = [Store(site) for site in state.environment.path if Store(site).exists]
    for store in hidden:
        if store not in sites(state.environment):
            notes.append(f"SelfAug is also in {store.site}, hidden by other copies of the packages.")
    if patched and state.environment.conda:
        notes.append("`conda doctor` will list the patched files as altered; this is expected; revert undoes it.")
    if patched:
        for process in older_than(patched[0].store.receipt_path):
            notes.append(
                f"Process {process} started before the last install: it runs the old code until it is restarted."
            )
    return notes


def older_than(receipt: Path) -> list[str]:
    """Processes that use this site directory and started before its receipt was written: ``PID (command)``.

    Only processes of the same user are seen, and only if they have a compiled library of that directory mapped, as all
    that imported torch have. A process that started earlier but imports later is named, too.
    """
    processes = []
    try:
        written = receipt.stat().st_mtime
        libraries = f"{os.path.realpath(receipt.parent.parent)}/"  # what /proc names, whatever link led there
        for entry in sorted(_PROC.iterdir()):
            if not _PID.fullmatch(entry.name) or int(entry.name) == os.getpid() or _started(entry) > written - 1:
                continue
            if libraries in _text(entry / "maps"):
                command = _text(entry / "cmdline").replace("\0", " ").strip()
                processes.append(f"{entry.name} ({command[:60]})")
    except (OSError, ValueError):
        return processes
    return processes[:_SHOWN]


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
