"""The HF Trainer and its subclasses (TRL, LLaMA-Factory, ms-swift): what a step needs to know of them, and they of it.

Most trainers backpropagate ``outputs.loss``. Two kinds do not: those that keep the labels from the model (label
smoothing, ``compute_loss_func``, TRL's "dft" until 1.14, ms-swift's weighted losses), and TRL from 1.15 on, which
reads ``outputs.log_probs`` instead. For these the term is added to what ``Trainer.compute_loss`` returns. Both that and
the logs are wrapped in memory; no file is touched.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from . import config, metrics, positions, watch
from .eager import eager


class Step:
    """One call of ``Trainer.compute_loss``."""

    def __init__(self, trainer: Any, inputs: Any, num_items: Any) -> None:
        self.labels = inputs.get("labels") if isinstance(inputs, Mapping) else None  # (B, T), or None: not SFT
        self.keeps_labels = _keeps_labels(trainer, inputs)
        self.num_items = num_items
        self.pad_tokens = _pad_tokens(trainer)
        self.acted = False
        self.term: Tensor | None = None  # () sum of weighted KL, to be added to the trainer's loss
        self.counted = self.supervised = 1

    def owe(self, term: Tensor, chosen: positions.Selection) -> None:
        """Leave a term, not yet divided, to be added to this step's loss."""
        self.term, self.counted, self.supervised = term, chosen.counted, chosen.supervised

    def share(self, trainer: Any) -> Tensor:
        """The term in the trainer's own normalisation: per token of the global batch where it counts them."""
        assert self.term is not None
        share = self.term / positions.divisor(self.num_items, self.counted, self.term.device)
        if self.num_items is not None and getattr(trainer.args, "average_tokens_across_devices", False):
            tensor_parallel = trainer.get_tp_size() if hasattr(trainer, "get_tp_size") else 1
            share = share * (trainer.accelerator.num_processes // tensor_parallel)
        return share


def _keeps_labels(trainer: Any, inputs: Any) -> bool:
    """Whether the trainer takes the labels out of ``inputs`` before it calls the model."""
    return (
        trainer.label_smoother is not None
        or getattr(trainer, "compute_loss_func", None) is not None
        or (isinstance(inputs, Mapping) and "loss_scale" in inputs)  # ms-swift: swift/trainers/seq2seq_trainer.py
        or any(getattr(trainer.args, name, False) for name in ("enable_dft_loss", "enable_channel_loss"))
    )


def _pad_tokens(trainer: Any) -> list[Any]:
    """The pad tokens of the tokenizers that the trainer and its collator hold (named differently over the releases)."""
    holders = [vars(trainer), getattr(vars(trainer).get("data_collator"), "__dict__", {})]
    tokenizers = [holder.get(name) for holder in holders for name in ("processing_class", "tokenizer")]
    tokens = [getattr(tokenizer, "pad_token_id", None) for tokenizer in tokenizers]
    return tokens + [holder.get("pad_token_id") for holder in holders]


step: Step | None = None  # on whose behalf the model is being called


@eager
def current() -> Step | None:
    """:data:`step`; None outside an HF Trainer's ``compute_loss``."""
    return step


@eager
def attach() -> None:
    """Wrap the step and log methods of this process's ``Trainer``, once; nothing if the Trainer is not imported."""
    module = sys.modules.get("transformers.trainer")
    trainer = getattr(module, "Trainer", None)
    if trainer is None or hasattr(trainer, "selfaug_attached"):
        return
    trainer.selfaug_attached = True
    training_step, prediction_step, log = trainer.training_step, trainer.prediction_step, trainer.log

    @functools.wraps(training_step)
    def training_step_with_selfaug(self: Any, *args: Any, **kwargs: Any) -> Any:
        metrics.RUNNING.belong_to(self)
        with _wrapped_compute_loss(self, training=True):
            return training_step(self, *args, **kwargs)

    @functools.wraps(prediction_step)
    def prediction_step_with_selfaug(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not config.read(getattr(self.model, "config", None)).evaluation:
            return prediction_step(self, *args, **kwargs)
        with _wrapped_compute_loss(self, training=False):
            return prediction_step(self, *args, **kwargs)

    @functools.wraps(log)
    def log_with_selfaug(self: Any, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:  # callbacks see the logs only after log_history has its copy
            logs.update(metrics.RUNNING.take())
        log(self, logs, *args, **kwargs)

    trainer.training_step = training_step_with_selfaug
    trainer.prediction_step = prediction_step_with_selfaug
    trainer.log = log_with_selfaug


@contextmanager
def _wrapped_compute_loss(trainer: Any, training: bool) -> Iterator[None]:
    users = vars(trainer).get("compute_loss")
    trainer.compute_loss = functools.partial(_compute_loss, trainer, trainer.compute_loss, training)
    try:
        yield
    finally:
        del trainer.compute_loss
        if users is not None:
            trainer.compute_loss = users


def _compute_loss(
    trainer: Any, compute_loss: Any, training: bool, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any
) -> Any:
    global step
    before, mine = step, Step(trainer, inputs, kwargs.get("num_items_in_batch"))
    step = mine
    try:
        result = compute_loss(model, inputs, *args, **kwargs)
    finally:
        step = before
    if training and mine.labels is not None and not mine.acted:
        watch.trainer_step_without(model, trainer)
    if mine.term is None:
        return result
    loss = result[0] if isinstance(result, tuple) else result
    loss = positions.without_nan(loss, mine.supervised) + mine.share(trainer).to(loss.device)
    return (loss, *result[1:]) if isinstance(result, tuple) else loss
