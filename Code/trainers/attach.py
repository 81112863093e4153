"""The HF Trainer and its subclasses (TRL, LLaMA-Factory, ms-swift), with SelfAug around their methods.

Most trainers backpropagate ``outputs.loss``. Two kinds do not. Some keep the labels from the model: label smoothing,
``compute_loss_func``, TRL's "dft" until 1.14, ms-swift's weighted losses. TRL from 1.15 on reads ``outputs.log_probs``
instead. For both kinds the term is added to what ``compute_loss`` returns.

A subclass, an instance or another library may replace ``training_step``, ``compute_loss`` or ``log`` at any time. So
SelfAug replaces none of them: ``Trainer.__getattribute__`` returns whatever method is in force with SelfAug around it.
That happens in memory; no file is touched.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import FunctionType, MethodType
from typing import Any, Callable

from torch import Tensor, nn

from .. import config
from ..eager import eager
from ..positions import Selection
from . import anchors, bypass, controller, metrics, runs, turns


class TrainerCall:
    """One call of ``training_step`` or, with ``takes_term``, of ``compute_loss``: then a term that could not be added
    to the model's loss is added to the loss that ``compute_loss`` returns.
    """

    def __init__(self, trainer: Any, inputs: Any, takes_term: bool, num_items_in_batch: Any = None) -> None:
        inputs = inputs if isinstance(inputs, Mapping) else {}
        labels = inputs.get("labels")
        self.trainer = trainer
        self.input_ids: Tensor | None = inputs.get("input_ids")
        self.labels: Tensor | None = inputs.get("shift_labels") if labels is None else labels  # None: not SFT
        self.takes_term = takes_term
        self.keeps_labels = takes_term and _keeps_labels(trainer, inputs)
        self.num_items_in_batch = num_items_in_batch
        self.pad_tokens = _pad_tokens(trainer)
        # whether NLL is a mean over the micro-batch, although the Trainer knows num_items_in_batch
        self.is_mean = not _uses_num_items(getattr(trainer, "compute_loss_func", None))
        self.acted = False  # SelfAug had its part in this call
        self.micro_batch = 0  # its number in the run, see `turns`; 0 in an evaluation
        self._terms: list[tuple[Tensor, Selection]] = []

    @property
    def expected_num_items(self) -> Any:
        """What NLL will be divided by: ``num_items_in_batch``, or None for the tokens of the micro-batch. Whether a
        label smoother is told shows after the model has run; until then, it is as at the run's call before.
        """
        mean = _LOSSES.of_owner(self.trainer.state).was_mean
        if mean is None:
            loss = getattr(self.trainer, "compute_loss_func", None) or vars(self.trainer).get("label_smoother")
            mean = not _uses_num_items(loss)
        return None if mean else self.num_items_in_batch

    def leave_term(self, term: Tensor, chosen: Selection) -> None:
        """Leave ``term``, () a weighted sum that is not divided yet, for :meth:`with_term`. A ``compute_loss`` that
        calls the model several times leaves several.
        """
        self._terms.append((term, chosen))

    def labels_of(self, input_ids: Tensor | None) -> Tensor | None:
        """The labels that this call keeps from the model. None if it keeps none, and for other tokens than those that
        came with the labels: of another shape or, after the first call of the model, different ones.
        """
        if not self.keeps_labels:
            return None
        ours = self.input_ids
        if input_ids is None or ours is None or input_ids is ours:  # embeddings: nothing to compare
            return self.labels
        same = input_ids.shape == ours.shape and (not self._terms or bool((input_ids == ours.to(input_ids)).all()))
        return self.labels if same else None

    def with_term(self, loss: Tensor) -> Tensor:
        """``loss`` of the trainer plus the term that was left, normalised as that loss is: divided by the tokens of
        the global batch where the trainer divides by ``num_items_in_batch``, a mean of the micro-batch where it does
        not (label smoothing until transformers 5.14).
        """
        if self.num_items_in_batch is not None:
            _LOSSES.of_owner(self.trainer.state).was_mean = self.is_mean
        for term, chosen in self._terms:
            loss = self._plus(loss, term, chosen)
        return loss

    def _plus(self, loss: Tensor, term: Tensor, chosen: Selection) -> Tensor:
        num_items = None if self.is_mean else self.num_items_in_batch
        term = term / chosen.divisor(num_items, term.device)
        # the Trainer multiplies its loss by the same factor
        if self.num_items_in_batch is not None and getattr(self.trainer.args, "average_tokens_across_devices", False):
            tensor_parallel = self.trainer.get_tp_size() if hasattr(self.trainer, "get_tp_size") else 1
            term = term * (self.trainer.accelerator.num_processes // tensor_parallel)
        return chosen.without_nan(loss) + term.to(loss.device)


def _keeps_labels(trainer: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether the trainer takes the labels out of ``inputs`` before it calls the model."""
    return (
        trainer.label_smoother is not None
        or getattr(trainer, "compute_loss_func", None) is not None
        or "loss_scale" in inputs  # ms-swift: swift/trainers/seq2seq_trainer.py
        or any(getattr(trainer.args, name, False) for name in ("enable_dft_loss", "enable_channel_loss"))
    )


def _pad_tokens(trainer: Any) -> list[Any]:
    """The pad tokens of the tokenizers that the trainer and its collator hold. Releases name them differently."""
    holders = [vars(trainer), getattr(vars(trainer).get("data_collator"), "__dict__", {})]
    tokenizers = [holder.get(name) for holder in holders for name in ("processing_class", "tokenizer")]
    tokens = [getattr(tokenizer, "pad_token_id", None) for tokenizer in tokenizers]
    return tokens + [holder.get("pad_token_id") for holder in holders]


def hides_num_items(trainer: Any) -> bool:
    """Whether the trainer's ``compute_loss_func`` may get ``num_items_in_batch`` in its ``**kwargs`` and use it."""
    parameters = _parameters(getattr(trainer, "compute_loss_func", None)) or {}
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return any_name and "num_items_in_batch" not in parameters


def _uses_num_items(loss_function: Any) -> bool:
    """Whether a loss function has an argument ``num_items_in_batch``; True for none, which is the model's own loss, and
    for a callable without a signature.
    """
    parameters = _parameters(loss_function)
    return parameters is None or "num_items_in_batch" in parameters


def _parameters(function: Any) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a function by name. None without a function, and for a callable without a signature."""
    try:
        return None if function is None else inspect.signature(function).parameters
    except (TypeError, ValueError):
        return None


class _ObservedSmoother:
    """A trainer's label smoother, watched for whether it gets ``num_items_in_batch``. The Trainer until 5.14 and
    ms-swift do not pass it; the smoothed loss is then a mean over the micro-batch.
    """

    def __init__(self, smoother: Any, call: TrainerCall) -> None:
        self._smoother, self._call = smoother, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        passed = _argument(3, "num_items_in_batch", args, kwargs) is not None
        self._call.is_mean = not (passed and _uses_num_items(self._smoother.__call__))
        return self._smoother(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._smoother, name)


class _Losses:
    was_mean: bool | None = None  # `TrainerCall.is_mean` of the run's last loss


_LOSSES = runs.PerRun(_Losses)
_FUNCTIONS = (FunctionType, MethodType, functools.partial)  # mocks and other objects stay as they are
current: TrainerCall | None = None  # the innermost call of a Trainer that is under way


@eager
def current_call() -> TrainerCall | None:
    """The innermost ``training_step`` or ``compute_loss`` of an HF Trainer that is under way; None outside of both."""
    return current


@eager
def kept_labels(input_ids: Tensor | None) -> Tensor | None:
    """The labels that the current call of a Trainer keeps from the model, in either form, see
    :meth:`TrainerCall.labels_of`.
    """
    return None if current is None else current.labels_of(input_ids)


@eager
def keeps_other_labels() -> bool:
    """Whether the current call of a Trainer keeps labels from the model, where :func:`kept_labels` knows none."""
    return current is not None and current.keeps_labels and current.labels is not None


def controlled(settings: config.Settings, trainer: Any) -> config.Settings:
    """The settings with the alpha that SELFAUG_TARGET_KL sets in the run of ``trainer``; as they are without it."""
    if not settings.enabled or settings.target_kl is None:
        return settings
    return replace(settings, alpha=controller.alpha(settings.alpha, settings.target_kl, trainer))


@eager
def to_trainer() -> None:
    """Make this process's ``Trainer`` return its methods with SelfAug around them. Does nothing if that is done or if
    the Trainer is not imported.
    """
    trainer: Any = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    if trainer is None or _is_ours(trainer.__getattribute__):
        return
    find = trainer.__getattribute__

    @functools.wraps(find)
    def __getattribute__(self: Any, name: str) -> Any:
        value = find(self, name)
        if name == "label_smoother":
            call = None if value is None else current
            return value if call is None or not call.takes_term else _ObservedSmoother(value, call)
        around = _AROUND.get(name)
        if around is None or _is_ours(value) or not isinstance(value, _FUNCTIONS):
            return value
        return _with(around, self, value)

    trainer.__getattribute__ = _marked(__getattribute__)


def _with(around: Callable[..., Any], trainer: Any, method: Any) -> Callable[..., Any]:
    """``method`` of ``trainer`` inside ``around(trainer, method, ...)``. A method stays a method."""
    is_method = isinstance(method, MethodType)

    @functools.wraps(getattr(method, "__func__", method))
    def function(*args: Any, **kwargs: Any) -> Any:
        return around(trainer, method, *(args[1:] if is_method else args), **kwargs)

    marked: Callable[..., Any] = _marked(function)
    return MethodType(marked, method.__self__) if is_method else marked


def _marked(function: Any) -> Any:
    function.selfaug_wrapper = function
    return function


def _is_ours(function: Any) -> bool:
    function = getattr(function, "__func__", function)
    return getattr(function, "selfaug_wrapper", None) is function  # identity, because functools.wraps copies marks


@contextmanager
def _during(call: TrainerCall, trains: bool) -> Iterator[TrainerCall | None]:
    """Within: the model is called for ``call``. Yields the call around it, which has acted if this one has."""
    global current
    outer, current = current, call
    if outer is not None:
        call.micro_batch = outer.micro_batch
    elif trains:
        call.micro_batch = turns.begun_by(call.trainer)
    try:
        with runs.during(call.trainer.state):
            yield outer
    finally:
        current = outer
        if outer is not None:
            outer.acted |= call.acted


def _training_step(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    model, inputs = _argument(0, "model", args, kwargs), _argument(1, "inputs", args, kwargs)
    call = TrainerCall(trainer, inputs, takes_term=False)
    with _during(call, trains=True):
        result = method(*args, **kwargs)
        _check_acted(model, call)
    return result


def _compute_loss(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    model, inputs = _argument(0, "model", args, kwargs), _argument(1, "inputs", args, kwargs)
    if not model.training and not config.read(getattr(trainer.model, "config", None)).evaluation:
        return method(*args, **kwargs)
    call = TrainerCall(trainer, inputs, True, _argument(3, "num_items_in_batch", args, kwargs))
    with _during(call, model.training) as outer:
        result = method(*args, **kwargs)
        if outer is None and model.training:
            _check_acted(model, call)
    return (call.with_term(result[0]), *result[1:]) if isinstance(result, tuple) else call.with_term(result)


def _get_batch_samples(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = method(*args, **kwargs)
    if config.read(getattr(trainer.model, "config", None)).anchors:
        # over all processes where the Trainer counts its num_items_in_batch so
        together = getattr(trainer.args, "average_tokens_across_devices", False)
        anchors.count(trainer.state, result[0], trainer.args.device, together)
    return result


def _argument(position: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[position] if len(args) > position else kwargs.get(name)


def _check_acted(model: nn.Module, call: TrainerCall) -> None:
    if call.labels is not None and not call.acted:
        bypass.count_missed_call(model, call.trainer)


def _maybe_log_save_evaluate(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Gathers the sums for the logs over all processes: for a log that comes now, and at the end of training for the
    last one. Every process calls this method after every optimizer step, and the Trainer gathers its own loss here, so
    no process can wait for one that never comes.
    """
    if trainer.control.should_log and trainer.state.global_step > getattr(trainer, "_globalstep_last_logged", 0):
        _gather(trainer)
    result = method(*args, **kwargs)
    if trainer.control.should_training_stop:
        _gather(trainer)
    return result


def _gather(trainer: Any) -> None:
    settings = [of_model for _, of_model in bypass.models_on(trainer.model)]
    if settings:
        in_force, sums = controlled(settings[0], trainer), metrics.RUNNING.of_owner(trainer.state)
        sums.gather(trainer.args.device, in_force.alpha, in_force.measure)


def _log(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Adds the means to the log of a loss. The Trainer's last log has only ``train_loss``: a run that is shorter than
    ``logging_steps`` has no other.
    """
    logs, sums = _argument(0, "logs", args, kwargs), metrics.RUNNING.of_owner(trainer.state)
    # a callback gets the logs too late: log_history has its copy by then
    if isinstance(logs, dict) and ("loss" in logs or "train_loss" in logs):
        logs.update(sums.logs)
        sums.logs = {}
    return method(*args, **kwargs)


def _train(trainer: Any, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # callbacks save the config as JSON before the first step
    config.read(getattr(trainer.model, "config", None))
    result = method(*args, **kwargs)
    bypass.end_of_run(trainer)
    return result


_AROUND: dict[str, Callable[..., Any]] = {
    "training_step": _training_step,
    "compute_loss": _compute_loss,
    "get_batch_samples": _get_batch_samples,
    "_maybe_log_save_evaluate": _maybe_log_save_evaluate,
    "log": _log,
    "train": _train,
}
