"""``SELFAUG_EVERY=k``: the term at one of every k micro-batches, with k times its weight. The others need no reference.

Micro-batches are numbered through the run, and each k of them in a row are a block. The number of a block decides which
of its micro-batches has the term. So all processes agree without asking each other, a run that is resumed goes on as if
it had never stopped, each optimizer step has its share where k divides its micro-batches, and no place in the block is
preferred: loss and gradient are right on average, whatever order the data has within an accumulation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..config import SettingError
from .runs import PerRun


class MicroBatches:
    """Numbers the micro-batches of one run, from 0."""

    def __init__(self) -> None:
        self._optimizer_step = -1
        self._within = self._called = -1

    def of_trainer(self, trainer: Any) -> int:
        """The number of the micro-batch that an HF Trainer begins now. It follows from the optimizer step, which a
        resumed run takes from its checkpoint.
        """
        step = int(trainer.state.global_step)
        self._within = self._within + 1 if step == self._optimizer_step else 0
        self._optimizer_step = step
        return step * int(trainer.args.gradient_accumulation_steps) + self._within

    def of_call(self, again: bool) -> int:
        """The number of a call of the model, for a training loop without an HF Trainer. ``again``: the last call goes
        on, so its number stays.
        """
        self._called += not again
        return max(0, self._called)


_NUMBERS = PerRun(MicroBatches)


def begun_by(trainer: Any) -> int:
    """The number of the micro-batch that ``trainer`` begins now; to be asked once for each."""
    return _NUMBERS.of_owner(trainer.state).of_trainer(trainer)


def check(trainer: Any, every: int) -> None:
    """Make sure that the run of ``trainer`` has a whole block of micro-batches: with less, it may have no term.

    Raises:
        SettingError: it has not.
    """
    steps = int(trainer.state.max_steps) * int(trainer.args.gradient_accumulation_steps)
    if 0 < steps < every:
        raise SettingError(
            f"SELFAUG_EVERY={every} puts the term in one of every {every} micro-batches, and this run has {steps}, so "
            f"it may have none. Set SELFAUG_EVERY to {steps} or less; 4 is what was measured. No step was made."
        )


def called(model: nn.Module, nested: bool) -> int:
    """The number of this call of ``model``, which no HF Trainer makes; to be asked once for each. A forward ``nested``
    in a forward of the same model, and one that checkpointing computes again in the backward pass, are a part of the
    call before.
    """
    return _NUMBERS.of(model).of_call(nested or torch._C._current_graph_task_id() != -1)  # -1: no backward pass runs


def has_term(micro_batch: int, every: int) -> bool:
    """Whether the micro-batch of this number, from 0, is the one of its block of ``every`` that has the term."""
    block, place = divmod(micro_batch, every)
    drawn = torch.randint(every, (), generator=torch.Generator().manual_seed(block), device="cpu")
    return place == int(drawn)
