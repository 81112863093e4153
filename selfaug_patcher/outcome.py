"""What a run did or would do, for `cli` to print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .environment import Environment
from .errors import PatcherError, Problem
from .plan import Plan
from .state import State
from .store import Store


@dataclass(frozen=True)
class Outcome:
    """``state`` is the environment after the run, or before it for a dry run; ``found`` what a recovery reported."""

    verb: str
    state: State
    plan: Plan
    found: list[str] = field(default_factory=list)


def without_lock(
    make_plan: Callable[[], Plan],
    changed: Callable[[], bool],
    environment: Environment,
    stores: Sequence[Store],
    dry_run: bool,
) -> Plan | None:
    """The plan, made without the lock: a dry run, and a user who may not write and has nothing to do, need none.

    None where the lock is needed first: an earlier run has to be undone, or another patcher may be at work.

    Args:
        make_plan: makes it.
        changed: whether the environment is another than the one that was looked at before.
    """
    if any(store.interrupted() for store in stores):
        if dry_run:
            raise _interrupted(environment, stores)
        return None
    if not dry_run and any(store.needs_tidying() for store in stores):
        return None
    try:
        return make_plan()
    except PatcherError:
        # What was read may be another patcher's work half done: then it differs now, or that one's files are there.
        if dry_run or not (any(store.needs_tidying() for store in stores) or changed()):
            raise
        return None


def _interrupted(environment: Environment, stores: Sequence[Store]) -> PatcherError:
    """For runs that must not write, and therefore cannot undo what an earlier one left."""
    return PatcherError(
        Problem(
            id="interrupted-run",
            what="an earlier run was interrupted, and has to be undone first",
            expected="no files of an unfinished run",
            found=", ".join(str(store.root) for store in stores if store.interrupted()),
            do=f"{environment.commands.patcher('status')} (which undoes it), then the same command again",
        )
    )
