"""Which files a command is about, and why they must not be patched: all reasons at once, each with what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .difference import explain
from .environment import AGAIN, Commands
from .errors import MODIFIED as EXIT_MODIFIED
from .errors import UNSUPPORTED as EXIT_UNSUPPORTED
from .errors import USAGE, PatcherError, Problem
from .payload import installed
from .state import MISSING, MODIFIED, PATCHED, UNPINNED, UNSUPPORTED, State, TargetState
from .store import RUNTIME, Store

# In place of names: every family.
ALL = ("--all",)

# Reasons not to write into a package; none of them speaks against another text in memory.
_ONLY_ON_DISK = {"editable", "externally-managed"}


@dataclass(frozen=True)
class Choice:
    """What a command is about: the targets, what speaks against them, and which models were left out, and why.
    ``optional`` are the families among the targets that the user did not name."""

    targets: list[TargetState]
    problems: list[Problem]
    left_out: dict[str, Problem]
    optional: list[str]


def choose(state: State, names: Sequence[str], *, in_memory: bool = False, pinned_only: bool = False) -> Choice:
    """The targets of `install` or, ``in_memory``, of `run`.

    They are the families that are named (or the default one), those that are patched, and peft's layer; and, where
    nothing speaks against them, the other families if `ALL` are asked for, and those that pip has replaced since they
    were patched.

    Raises:
        PatcherError: there is no such family.
    """
    known = [model.target.family for model in state.models]
    unknown = [name for name in names if name not in known and tuple(names) != ALL]
    if unknown:
        what, do = f"there is no family {', '.join(unknown)}", "name one of these, or say --all"
        raise PatcherError(Problem("usage", what, ", ".join(known), ", ".join(unknown), do, exit_code=USAGE))
    named = names or known[:1]
    chosen = Choice([], [], {}, [])
    for model in state.models:
        family = model.target.family
        problems = refusals(state, [model], in_memory=in_memory, pinned_only=pinned_only)
        if family in named or model.state == PATCHED or model.edited_after_install():
            chosen.targets.append(model)
            chosen.problems.extend(problems)
        elif tuple(names) == ALL or model.original is not None:
            if problems:
                chosen.left_out[family] = problems[0]
            else:
                chosen.targets.append(model)
                chosen.optional.append(family)
    if not chosen.targets:
        chosen.problems.extend(chosen.left_out.values())
    chosen.targets.append(state.layer)
    chosen.problems.extend(refusals(state, [state.layer], in_memory=in_memory, pinned_only=pinned_only))
    return chosen


def refusals(
    state: State, targets: Sequence[TargetState], *, in_memory: bool = False, pinned_only: bool = False
) -> list[Problem]:
    """Why these targets must not be patched: by `install`, or ``in_memory`` by `run`."""
    problems: list[Problem] = []
    for target in targets:
        blocking = [p for p in target.package.problems if not (in_memory and p.id in _ONLY_ON_DISK)]
        problems += blocking
        if blocking:
            continue
        if target.path is not None and not in_memory:
            try:
                target.store.place(target.target.path)
            except PatcherError as error:
                problems += error.problems
        if target.state == MISSING and (target.target.is_model or target.path is not None):
            problems.append(_missing(target, state))
        elif target.state == UNSUPPORTED or (pinned_only and _is_unpinned(target, state)):
            problems.append(_unsupported(target, state))
        elif target.state == MODIFIED:
            problems.append(_modified(target, state))
    return list(dict.fromkeys(problems))  # what speaks against a package speaks against each of its files


def _is_unpinned(target: TargetState, state: State) -> bool:
    """Whether the file, patched or not, is as pip installed it, of a release that nobody has pinned."""
    if target.state != PATCHED or target.pin is not None:
        return target.state == UNPINNED
    stock = target.original.stock_sha256 if target.original else ""  # an older SelfAug's patched file has no pin itself
    return state.table.by_stock(target.target.name, stock) is None


def all_refusals(state: State) -> list[Problem]:
    """Why what is in use, the runtime included, must not be patched."""
    return refusals(state, state.in_use()) + runtime_refusals(state)


def runtime_refusals(state: State) -> list[Problem]:
    """Why the runtime must not be put beside transformers."""
    return [_foreign_runtime(state)] if state.runtime_state == "modified" else []


def nearest_releases(state: State, targets: Sequence[TargetState]) -> str:
    """The command for the nearest pinned releases of these targets' packages."""
    commands = dict.fromkeys(
        state.environment.commands.install(
            f"{t.package.name}=={state.table.nearest(t.target.name, t.package.version).version}"
        )
        for t in targets
    )
    return f"{' && '.join(commands)}, then the same command again"


def changed_modules(state: State) -> list[str]:
    """The files in ``selfaug/`` that are not as the receipt says, one line each."""
    receipt = Store(state.site).receipt() if state.site is not None else None
    if receipt is None or state.site is None:
        return []
    present = installed(state.site)
    lines = [f"missing: {name}" for name in receipt.runtime if name not in present]
    lines += [f"changed: {name}" for name, sha256 in present.items() if receipt.runtime.get(name, sha256) != sha256]
    return lines + [f"not SelfAug's: {name}" for name in present if name not in receipt.runtime]


def lost_original(target: TargetState, commands: Commands) -> Problem:
    package = target.package
    return Problem(
        id="lost-original",
        what=f"the stock file of {package.name} that an older SelfAug kept is gone or damaged",
        expected="the file, with the content that the record says",
        found=str(target.store.originals),
        do=commands.install(f"{package.name}=={package.version}", *AGAIN),
    )


def _missing(target: TargetState, state: State) -> Problem:
    package, commands = target.package, state.environment.commands
    if package.site is None:
        newest = state.table.pinned(target.target.name)[-1].version
        seen, do = f"none in {state.environment.python}", commands.install(f"{package.name}<={newest}")
        return Problem("not-installed", f"{package.name} is not installed", "a pinned release", seen, do)
    do = commands.install(f"{package.name}=={package.version}", *AGAIN)
    return Problem("missing-file", f"{package.name} lacks a file that it should have", str(target.path), "no file", do)


def _unsupported(target: TargetState, state: State) -> Problem:
    name, package, table = target.target.name, target.package, state.table
    pins = table.pinned(name)
    nearest = table.nearest(name, package.version)
    if target.why is not None:
        return replace(target.why, do=nearest_releases(state, [target]))
    what = "not in the pin table"
    if target.state == UNSUPPORTED:
        what += ", and no RECORD tells whether pip installed this file"
    actual = (
        f"{target.path}, sha256 {target.sha256} ({what})"
        if target.sha256
        else f"no {target.path}, which came with {package.name} {target.target.since}"
    )
    pin = f"python -m selfaug_patcher pin {package.name} {package.version or 'VERSION'}"
    return Problem(
        id="unpinned-release",
        what=f"no verified patch for {package.name} {package.version or '(version unknown)'}",
        expected=f"a pinned release ({pins[0].version} ... {pins[-1].version}); the nearest is {nearest.version}",
        found=actual,
        do=f"{nearest_releases(state, [target])}; "
        f"or, in a checkout of SelfAug, pin this release: {pin} (docs/rebasing.md there)",
        exit_code=EXIT_UNSUPPORTED,
    )


def _modified(target: TargetState, state: State) -> Problem:
    package, table, commands = target.package, state.table, state.environment.commands
    pin = table.by_version(target.target.name, package.version)
    expected = pin.stock_sha256 if pin else package.record.get(target.target.path)
    do = f"{commands.install(f'{package.name}=={package.version}', *AGAIN)} (this discards the edits)"
    if target.edited_after_install():
        do = f"{commands.patcher('revert', '--keep-edits DIR')} (saves the edited file, restores stock), then install"
    return Problem(
        id="modified-file",
        what=f"the file of {package.name} {package.version} that SelfAug patches was changed by someone else",
        expected=f"sha256 {expected}" if expected else "the file that SelfAug left",
        found=explain(target, table),
        do=do,
        exit_code=EXIT_MODIFIED,
    )


def _foreign_runtime(state: State) -> Problem:
    path = state.store.site / RUNTIME
    if state.store.receipt() is None:
        what = "there is a package 'selfaug' that SelfAug did not install"
        expected, do = "none of this name, or SelfAug's", "move it away"
        return Problem("foreign-package", what, expected, str(path), do, exit_code=EXIT_MODIFIED)
    return Problem(
        id="modified-runtime",
        what="files of the installed SelfAug were changed by someone else",
        expected="the files as SelfAug left them",
        found="\n".join([str(path), *changed_modules(state)]),
        do=f"{state.environment.commands.patcher('revert', '--keep-edits DIR')} (saves the edited files), then install",
        exit_code=EXIT_MODIFIED,
    )
