"""What a run did or would do, for `cli` to print."""

from __future__ import annotations

from collections.abc import Sequence
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


def interrupted(environment: Environment, stores: Sequence[Store]) -> PatcherError:
    """For runs that must not write, and therefore cannot undo what an earlier one left."""
    return PatcherError(
        Problem(
            id="interrupted-run",
            what="an earlier run was interrupted, and has to be undone first",
            expected="no files of an unfinished run",
            found=", ".join(str(store.root) for store in stores if store.needs_tidying()),
            do=f"{environment.commands.patcher('status')} (which undoes it), then the same command again",
        )
    )
