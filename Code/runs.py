"""A run: one ``train()`` of one HF Trainer; without a Trainer, all steps of one model.

What is remembered from step to step (sums for the logs, what has been said) is remembered per run, and forgotten with
it: a second ``train()``, a retry with a smaller batch, the next trial of a search start from nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Generic, TypeVar

from torch import nn

T = TypeVar("T")

current: Any = None  # the TrainerState of the Trainer that is making a step; a Trainer makes a new one for each run


@contextmanager
def during(state: Any) -> Iterator[None]:
    """Within: steps belong to the run of this TrainerState. Threads of ``nn.DataParallel`` see it, too."""
    global current
    before, current = current, state
    try:
        yield
    finally:
        current = before


class PerRun(Generic[T]):
    """One object for each run, made by ``make()`` when it is first asked for."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.make = make
        # by identity: a TrainerState and a config compare by value
        self._known: dict[int, tuple[weakref.ref[Any], T]] = {}

    def of(self, model: nn.Module) -> T:
        """For the run that ``model`` is making a step of."""
        if current is not None:
            return self.of_owner(current)
        # replicas of nn.DataParallel live for one step; the config is what they share with the model
        return self.of_owner(model.config if vars(model).get("_is_replica") else model)

    def of_owner(self, owner: Any) -> T:
        """For a run known by its TrainerState, or by its model where there is no Trainer."""
        key = id(owner)
        known = self._known.get(key)
        if known is None or known[0]() is not owner:
            known = (weakref.ref(owner, lambda gone: self._forget(key, gone)), self.make())
            self._known[key] = known
        return known[1]

    def all(self) -> list[T]:
        """For every run of this process that is not over."""
        return [value for _, value in list(self._known.values())]

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def _forget(self, key: int, gone: weakref.ref[Any]) -> None:
        known = self._known.get(key)
        if known is not None and known[0] is gone:
            del self._known[key]
