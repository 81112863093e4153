"""A release that nobody has pinned is proved on the user's machine: by the trial, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .check import Check
from .errors import UNSUPPORTED, PatcherError, Problem
from .plan import Patch, texts
from .refusals import nearest_releases
from .state import State, TargetState
from .store import RUNTIME
from .trial import trial

Report = Callable[[str], None]
_SHOWN = 3


def needed(state: State, patches: Sequence[Patch]) -> list[Patch]:
    """Those that are not pinned, and not proved with this SelfAug and the versions that are here now."""
    now, installed = state.environment.versions(), state.runtime_state == "installed"
    return [
        each
        for each in patches
        if not each.pinned and (each.target.older or each.target.proved != now or not installed)
    ]


def models_to_try(state: State, patches: Sequence[Patch]) -> list[Patch]:
    """The models that need the trial: each that is not proved, or all of them where only peft's layer is not."""
    unproved = needed(state, patches)
    of = unproved if any(each.is_model for each in unproved) else patches if unproved else []
    return [each for each in of if each.is_model]


def changed(target: TargetState, now: Mapping[str, str]) -> list[str]:
    """What has another version than when a target was proved: ``torch 2.13.0; torch is 2.14.0 now``, one text each."""
    return [
        f"{name} {version or '(none)'}; {name} is {now.get(name) or 'gone'} now"
        for name, version in target.proved.items()
        if now.get(name) != version
    ]


def prove(state: State, patches: Sequence[Patch], models: Sequence[Patch], report: Report) -> list[Check]:
    """Try these models in child processes, with the patched texts served from memory.

    Args:
        patches: all files that are to be patched, those of the models and peft's among them.

    Raises:
        PatcherError: a check does not hold, or peft, without which there is no LoRA to try, is not there.
    """
    if state.layer.path is None:
        do = f"{state.environment.commands.install('peft')}, then the same command again"
        what = "a release that is not pinned is tried first, and that needs peft"
        raise PatcherError(Problem("no-trial", what, "peft", "not installed", do))
    checks = try_out(state, patches, models, report, in_memory=True)
    failed = [check for check in checks if not check.ok]
    if failed or not checks:
        tried = [*(each.target for each in models), state.layer]
        problems = [_refused(state, tried, check) for check in failed or [Check("trial", False, "no check was made")]]
        raise PatcherError(*problems[:_SHOWN])
    return checks


def try_out(
    state: State, patches: Sequence[Patch], models: Sequence[Patch], report: Report, *, in_memory: bool
) -> list[Check]:
    """The trial's checks of these models: with patched texts and runtime ``in_memory``, or with those on disk."""
    classes = [f"{each.target.target.module}:{name}" for each in models for name in each.class_names]
    patched = texts(patches, "patched") if in_memory else {}
    packages = {RUNTIME: str(state.runtime.root)} if in_memory else {}
    return trial(state.environment, patched, texts(patches, "stock"), packages, classes, report)


def _refused(state: State, tried: Sequence[TargetState], check: Check) -> Problem:
    """The refusal for a check that does not hold; its detail says what was expected, and what was found."""
    expected, _, actual = check.detail.removeprefix("expected: ").partition("\nfound:")
    if not actual:
        expected, actual = "a check that holds", check.detail
    unpinned = [target for target in tried if target.pin is None]
    names = ", ".join(dict.fromkeys(f"{t.package.name} {t.package.version}" for t in unpinned))
    what = f"SelfAug does not do what it should with {names}: {check.name}"
    do = nearest_releases(state, unpinned)
    return Problem("trial-failed", what, expected.strip(), actual.strip(), do, UNSUPPORTED)
