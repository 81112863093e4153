"""A release that nobody has pinned is proved on the user's machine: by the trial, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .check import Check
from .errors import UNSUPPORTED, PatcherError, Problem
from .refusals import nearest_releases
from .state import PATCHED, UNPINNED, State, TargetState
from .store import RUNTIME
from .trial import trial

Report = Callable[[str], None]
Sources = Mapping[str, "tuple[str, bytes]"]
_SHOWN = 3


def needed(state: State, chosen: Sequence[TargetState]) -> list[TargetState]:
    """The targets that are not pinned, and not proved with this SelfAug and the versions that are here now."""
    now = state.environment.versions()
    return [
        target
        for target in chosen
        if target.state == UNPINNED
        or (
            (target.state == PATCHED and target.pin is None)
            and (target.older or target.proved != now or state.runtime_state != "installed")
        )
    ]


def changed(target: TargetState, now: Mapping[str, str]) -> list[str]:
    """What has another version than when a target was proved: ``torch 2.13.0; torch is 2.14.0 now``, one text each."""
    return [
        f"{name} {version or '(none)'}; {name} is {now.get(name) or 'gone'} now"
        for name, version in target.proved.items()
        if now.get(name) != version
    ]


def prove(state: State, models: Sequence[TargetState], patched: Sources, stock: Sources, report: Report) -> list[Check]:
    """Try these models in child processes, with the patched texts served from memory.

    Raises:
        PatcherError: a check does not hold, or peft, without which there is no LoRA to try, is not there.
    """
    if state.layer.path is None:
        do = f"{state.environment.commands.install('peft')}, then the same command again"
        what = "a release that is not pinned is tried first, and that needs peft"
        raise PatcherError(Problem("no-trial", what, "peft", "not installed", do))
    classes = [f"{model.target.module}:{model.target.class_name}" for model in models]
    packages = {RUNTIME: str(state.runtime.root)}
    checks = trial(state.environment, patched, stock, packages, classes, report)
    failed = [check for check in checks if not check.ok]
    if failed or not checks:
        problems = [_refused(state, models, check) for check in failed or [Check("trial", False, "no check was made")]]
        raise PatcherError(*problems[:_SHOWN])
    return checks


def _refused(state: State, models: Sequence[TargetState], check: Check) -> Problem:
    """The refusal for a check that does not hold; its detail says what was expected, and what was found."""
    expected, _, actual = check.detail.removeprefix("expected: ").partition("\nfound:")
    if not actual:
        expected, actual = "a check that holds", check.detail
    unpinned = [target for target in (*models, state.layer) if target.pin is None]
    names = ", ".join(dict.fromkeys(f"{t.package.name} {t.package.version}" for t in unpinned))
    what = f"SelfAug does not do what it should with {names}: {check.name}"
    do = nearest_releases(state, unpinned)
    return Problem("trial-failed", what, expected.strip(), actual.strip(), do, UNSUPPORTED)
