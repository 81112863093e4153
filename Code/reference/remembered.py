"""What is found out about a model once in a run: which folder is its own, and what it is held to."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from torch import nn

T = TypeVar("T")


class Remembered(Generic[T]):
    """For each model: the value of its last run, and the facts that the value was found from."""

    def __init__(self) -> None:
        self._last: weakref.WeakKeyDictionary[nn.Module, tuple[weakref.ref[Any] | None, Any, T]] = (
            weakref.WeakKeyDictionary()
        )

    def of(self, model: nn.Module, run: Any) -> tuple[Any, T] | None:
        """(facts, value) if the last run of ``model`` is ``run``, else None.

        Args:
            run: the TrainerState of the HF Trainer that is calling the model, which each ``train()`` makes anew. None
                in a training loop of another kind, of which all steps are one run.
        """
        known = self._last.get(model)
        if known is None:
            return None
        of_run, facts, value = known
        # by identity: a TrainerState compares by value. A state that is gone is not None, the run without a Trainer
        same = of_run is None if run is None else of_run is not None and of_run() is run
        return (facts, value) if same else None

    def last(self, model: nn.Module) -> tuple[Any, T] | None:
        """(facts, value) of the last run of ``model``, whichever it was; None if there was none."""
        known = self._last.get(model)
        return None if known is None else known[1:]

    def keep(self, model: nn.Module, run: Any, facts: Any, value: T) -> T:
        """Remember ``value``, and return it."""
        self._last[model] = (None if run is None else weakref.ref(run), facts, value)
        return value

    def doubt(self, model: nn.Module) -> None:
        """Let the facts of ``model`` be others than any that are found, so that they are looked at again. In a run of
        an HF Trainer, whose start is known, they stay.
        """
        known = self._last.get(model)
        if known is not None and known[0] is None:
            self._last[model] = (known[0], _DOUBT, known[2])


_DOUBT = object()
