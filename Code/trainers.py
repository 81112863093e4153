"""The HF Trainer and its subclasses (TRL, LLaMA-Factory, ms-swift): what a step and the Trainer share.

Most trainers backpropagate ``outputs.loss``. Two kinds do not: those that keep the labels from the model (label
smoothing, ``compute_loss_func``, TRL's "dft" until 1.14, ms-swift's weighted losses), and TRL from 1.15 on, which
reads ``outputs.log_probs`` instead. For these the term is added to what ``compute_loss`` returns.

A subclass, an instance or another library may put its own ``training_step``, ``compute_loss`` or ``log`` in place of
the Trainer's, at any time. So nothing is put in their place: ``Trainer.__getattribute__`` hands out whatever method is
in force with SelfAug around it. That happens in memory; no file is touched.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any, Callable

from torch import Tensor, nn

from . import config, metrics, positions, runs, watch
from .eager import eager


class Step:
    """One call of ``training_step``, or of ``compute_loss``, which ``collects`` a term for the loss that it returns."""

    def __init__(self, trainer: Any, inputs: Any, collects: bool, num_items: Any = None) -> None:
        named = inputs if isinstance(inputs, Mapping) else {}
        self.trainer = trainer
        labels = named.get("labels")
        self.labels = named.get("shift_labels") if labels is None else labels  # (B, T), or None: not SFT
        self.collects = collects
        self.keeps_labels = collects and _keeps_labels(trainer, named)
        self.num_items = num_items
        self.pad_tokens = _pad_tokens(trainer)
        self.by_micro_batch = not _uses_num_items(getattr(trainer, "compute_loss_func", None))
        self.acted = False
        self.term: Tensor | None = None  # () sum of weighted KL, to be added to the trainer's loss
        self.counted = self.supervised = 1

    def owe(self, term: Tensor, chosen: positions.Selection) -> None:
        """Leave a term, not yet divided, to be added to this step's loss."""
        self.term, self.counted, self.supervised = term, chosen.counted, chosen.supervised

    def share(self) -> Tensor:
        """The term in the normalisation of the trainer's NLL: per token of the global batch where that is divided by
        ``num_items_in_batch``, the micro-batch's mean where it is not (label smoothing until transformers 5.14).
        """
        assert self.term is not None
        items = None if self.by_micro_batch else self.num_items
        share = self.term / positions.divisor(items, self.counted, self.term.device)
        # by which the Trainer multiplies its loss, too
        if self.num_items is not None and getattr(self.trainer.args, "average_tokens_across_devices", False):
            tensor_parallel = self.trainer.get_tp_size() if hasattr(self.trainer, "get_tp_size") else 1
            share = share * (self.trainer.accelerator.num_processes // tensor_parallel)
        return share


def _keeps_labels(trainer: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether the trainer takes the labels out of ``inputs`` before it calls the model."""
    return (
        trainer.label_smoother is not None
        or getattr(trainer, "compute_loss_func", None) is not None
        or "loss_scale" in inputs  # ms-swift: swift/trainers/seq2seq_trainer.py
        or any(getattr(trainer.args, name, False) for name in ("enable_dft_loss", "enable_channel_loss"))
    )


def _pad_tokens(trainer: Any) -> list[Any]:
    """The pad tokens of the tokenizers that the trainer and its collator hold (named differently over the releases)."""
    holders = [vars(trainer), getattr(vars(trainer).get("data_collator"), "__dict__", {})]
    tokenizers = [holder.get(name) for holder in holders for name in ("processing_class", "tokenizer")]
    tokens = [getattr(tokenizer, "pad_token_id", None) for tokenizer in tokenizers]
    return tokens + [holder.get("pad_token_id") for holder in holders]


def _uses_num_items(loss_function: Any) -> bool:
    """Whether a loss function that is given ``num_items_in_batch`` has an argument of that name."""
    try:
        return loss_function is None or "num_items_in_batch" in inspect.signature(loss_function).parameters
    except (TypeError, ValueError):  # no signature can be had
        return True


class _Observed:
    """A trainer's label smoother, which notes whether it is told to divide by ``num_items_in_batch``. Releases until
    5.14 do not tell it, nor does ms-swift; it then makes a mean of the micro-batch.
    """

    def __init__(self, smoother: Any, step: Step) -> None:
        self._smoother, self._step = smoother, step

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        told = _argument(3, "num_items_in_batch", args, kwargs) is not None
        self._step.by_micro_batch = not (told and _uses_num_items(self._smoother.__call__))
        return self._smoother(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._smoother, name)


# what is handed out with SelfAug around it; mocks and other objects are handed out as they are
_FUNCTIONS = (FunctionType, MethodType, functools.partial)
step: Step | None = None  # on whose behalf the model is being called


@eager
def current() -> Step | None:
    """:data:`step`; None outside an HF Trainer's ``training_step`` and ``compute_loss``."""
    return step


@eager
def attach() -> None:
    """See to it that this process's ``Trainer`` hands out its methods with SelfAug around them; nothing if it is not
    imported.
    """
    trainer: Any = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    if trainer is None or _is_ours(trainer.__getattribute__):
        return
    find = trainer.__getattribute__

    @functools.wraps(find)
    def __getattribute__(self: Any, name: str) -> Any:
        value = find(self, name)
        if name == "label_smoother":
            return value if value is None or step is None or not step.collects else _Observed(value, step)
        around = _AROUND.get(name)
        if around is None or _is_ours(value) or not isinstance(value, _FUNCTIONS):
            return value
        return _with(around, self, value)

    trainer.__getattribute__ = _marked(__getattribute__)


def _with(around: Callable[..., Any], trainer: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """``method`` of ``trainer`` with ``around(trainer, method, ...)`` around it: again a method, if it is one."""
    is_method = isinstance(method, MethodType)

    @functools.wraps(getattr(method, "__func__", method))
    def function(*args: Any, **kwargs: Any) -> Any:
        return around(trainer, method, *(args[1:] if is_method else args), **kwargs)

    return MethodType(_marked(function), method.__self__) if is_method else _marked(function)


def _marked(function: Any) -> Any:
    function.selfaug_wrapper = function
    return function


def _is_ours(function: Any) -> bool:
    function = getattr(function, "__func__", function)
    return getattr(function, "selfaug_wrapper", None) is function  # identity: functools.wraps copies marks


@contextmanager
def _stepping(mine: Step) -> Iterator[Step | None]:
    """Within: the model is called on behalf of ``mine``. Yields the step around it, which acted if this one did."""
    global step
    before, step = step, mine
    try:
        with runs.during(mine.trainer.state):
            yield before
    finally:
        step = before
        if before is not None:
            before.acted |= mine.acted


def _training_step(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    model, inputs = _argument(0, "model", args, kwargs), _argument(1, "inputs", args, kwargs)
    mine = Step(trainer, inputs, collects=False)
    with _stepping(mine):
        result = method(*args, **kwargs)
        _check(model, mine)
    return result


def _compute_loss(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    model, inputs = _argument(0, "model", args, kwargs), _argument(1, "inputs", args, kwargs)
    if not model.training and not config.read(getattr(trainer.model, "config", None)).evaluation:
        return method(*args, **kwargs)
    mine = Step(trainer, inputs, collects=True, num_items=_argument(3, "num_items_in_batch", args, kwargs))
    with _stepping(mine) as outer:
        result = method(*args, **kwargs)
        if outer is None and model.training:
            _check(model, mine)
    if mine.term is None:
        return result
    loss = result[0] if isinstance(result, tuple) else result
    loss = positions.without_nan(loss, mine.supervised) + mine.share().to(loss.device)
    return (loss, *result[1:]) if isinstance(result, tuple) else loss


def _argument(position: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _check(model: nn.Module, mine: Step) -> None:
    if mine.labels is not None and not mine.acted:
        watch.trainer_step_without(model, mine.trainer)


def _maybe_log_save_evaluate(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Every process calls this after every optimizer step, and at a step that is logged the Trainer gathers its own
    loss in it: the one place where a sum over processes cannot wait for a process that never comes.
    """
    if trainer.control.should_log and trainer.state.global_step > getattr(trainer, "_globalstep_last_logged", 0):
        settings = [s for _, s in watch.models_on(trainer.model)]
        if settings:
            metrics.RUNNING.of_owner(trainer.state).gather(trainer.args.device, settings[0].alpha)
    return method(*args, **kwargs)


def _log(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    logs, sums = _argument(0, "logs", args, kwargs), metrics.RUNNING.of_owner(trainer.state)
    if isinstance(logs, dict) and "loss" in logs:  # callbacks see the logs only after log_history has its copy
        logs.update(sums.logs)
        sums.logs = {}
    return method(*args, **kwargs)


def _train(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # callbacks save the config as JSON before the first step
    config.read(getattr(trainer.model, "config", None))
    result = method(*args, **kwargs)
    watch.end_of(trainer)
    return result


_AROUND: dict[str, Callable[..., Any]] = {
    "training_step": _training_step,
    "compute_loss": _compute_loss,
    "_maybe_log_save_evaluate": _maybe_log_save_evaluate,
    "log": _log,
    "train": _train,
}
