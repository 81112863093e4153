"""A run: one ``train()`` of one HF Trainer. Without a Trainer, all steps of one model are one run.

Sums for the logs and warnings that were shown are remembered for one run and forgotten with it: a second ``train()``,
a retry with a smaller batch and the next trial of a search start from nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Generic, TypeVar

from torch import nn

T = TypeVar("T")

current: Any = None  # the TrainerState of the Trainer that is calling the model; each train() makes a new one


@contextmanager
def during(state: Any) -> Iterator[None]:
    """Within: steps belong to the run of this TrainerState. The threads of ``nn.DataParallel`` see the same one."""
    global current
    before, current = current, state
    try:
        yield
    finally:
        current = before


class PerRun(Generic[T]):
    """One object for each run. ``make()`` makes it when it is first asked for."""

    def __init__(self, make: Callable[[], T]) -> None:
        self.make = make
        # by identity: a TrainerState and a config compare by value
        self._by_owner: dict[int, tuple[weakref.ref[Any], T]] = {}

    def of(self, model: nn.Module) -> T:
        """The object of the run that is calling ``model``."""
        if current is not None:
            return self.of_owner(current)
        # a replica of nn.DataParallel lives for one step; it shares the config with the model
        return self.of_owner(model.config if vars(model).get("_is_replica") else model)

    def of_owner(self, owner: Any) -> T:
        """The object of the run that belongs to ``owner``: a TrainerState or, without a Trainer, a model."""
        key = id(owner)
        entry = self._by_owner.get(key)
        if entry is None or entry[0]() is not owner:
            entry = (weakref.ref(owner, lambda gone: self._forget(key, gone)), self.make())
            self._by_owner[key] = entry
        return entry[1]

    def all(self) -> list[T]:
        """The objects of all runs of this process that are not over."""
        return [value for _, value in list(self._by_owner.values())]

    def clear(self) -> None:
        """Forget all runs."""
        self._by_owner.clear()

    def _forget(self, key: int, gone: weakref.ref[Any]) -> None:
        entry = self._by_owner.get(key)
        if entry is not None and entry[0] is gone:
            del self._by_owner[key]
