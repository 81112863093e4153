"""Never silently off: notice a bypass, that is training in which SelfAug's term reaches no gradient, and say whose
forward or loss it was.

A bypass concerns the user's result, so it is a warning of Python's and not a line of a log: loggers are often silenced,
and `warnings.filterwarnings("ignore")` stands in many scripts.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import warnings
import weakref
from typing import Any, Callable

import torch
from torch import Tensor, nn

from .. import config
from ..eager import eager
from ..positions import Selection
from ..reference import guards, switch
from .runs import PerRun

UNUSED = 8  # losses that were returned and not backpropagated, before a warning
MISSED = 1  # trainer calls without the term, before a warning
AWAITED = 256  # rows without an anchor, before a warning
ROWS, BATCHES = 16, 4  # without an aligned token, before a warning; both must be reached
STATE = {False: "The model trains on its stock loss.", True: "SELFAUG_STRICT=1 makes this an error."}
DO = "Switch off what replaces the loss or the forward (a fused kernel, a custom loss, unsloth; see docs/trainers.md)"
OFF = "or set SELFAUG=0 to train without SelfAug on purpose."
# the trainer's own setting, by the package that its class comes from
_ONLY_THE_ANSWER = {
    "unsloth": "call train_on_responses_only(trainer, ...)",
    "trl": "set assistant_only_loss=True in SFTConfig (for messages), or give the data prompt and completion columns "
    "(completion_only_loss=True)",
    "llamafactory": "set train_on_prompt: false",
    "swift": "set --loss_scale default (it trains on the assistant's turns)",
    "axolotl": "set train_on_inputs: false",
}
_COLLATOR = "have the data collator put -100 into labels where the prompt is"


class BypassError(RuntimeError):
    """SelfAug is on, and steps go past it (raised with SELFAUG_STRICT=1 only)."""


class BypassWarning(UserWarning):
    """SelfAug is on, and steps go past it. It is shown whatever filters are set, but for one that names it."""


class Bypass:
    """Counts the steps of one run that went past SelfAug, and warns once. With SELFAUG_STRICT=1 it raises each time."""

    def __init__(self) -> None:
        self.warned = False
        self.used = False  # a loss with the term was backpropagated
        self.given = 0  # losses with the term that the model returned
        self.unused = 0  # losses with the term that were not
        self.missed = 0  # trainer calls without the term
        self.rows = self.batches = 0  # without a token to align
        self.aligned = False  # some token was aligned
        self.awaited = self.anchors = 0  # with SELFAUG_ANCHORS: rows, and those without labels

    @eager
    def returned(self, loss: Tensor, strict: bool) -> None:
        """The model returned a loss with the term. Somebody should backpropagate it."""
        if self.used or not loss.requires_grad:  # after good steps, a loss that is only looked at is no bypass
            return
        self.given += 1
        if self.unused > UNUSED:
            self.never_used("the loop that calls it", strict)
        loss.register_hook(_BackwardHook(self))

    def never_used(self, by: str, strict: bool) -> None:
        """Losses with the term were returned, and nobody backpropagated one."""
        self._goes_past("the losses that the model returned were never backpropagated", by, strict)

    def missed_by(self, trainer: Any, model: nn.Module, strict: bool) -> None:
        """A call of an HF Trainer trained on labels, and SelfAug had no part in it."""
        self.missed += 1
        if self.missed > MISSED:
            self.computed_without(trainer, model, strict)

    def computed_without(self, trainer: Any, model: nn.Module, strict: bool) -> None:
        """The loss that a trainer computes has no part of SelfAug's."""
        by = f"{_by(trainer)}; the model's forward is {where(model.forward)}"
        self._goes_past(f"{type(trainer).__name__} computed its loss without it", by, strict)

    def in_evaluation(self, strict: bool) -> None:
        """The model was trained on losses that it computed in eval mode."""
        self.warn(
            "SelfAug is on but could not act: the model trains in eval mode, in which from_pretrained returns it.",
            strict,
            "Call model.train() before the training loop",
        )

    def could_not_act(self, reason: str, forward: Callable[..., Any], strict: bool, do: str = DO) -> None:
        """The term cannot be added to the loss of a call with labels."""
        self.warn(f"SelfAug is on but could not act: {reason}, in {where(forward)}.", strict, do)

    def replaced(self, forward: Callable[..., Any], strict: bool) -> None:
        """A forward that replaced a wrapped one has made a step. From now on it is wrapped, too."""
        self.warn(
            "SelfAug is on, and a step went past it: the model's forward was replaced after the model was made, by "
            f"{where(forward)}. Steps from now on have the term.",
            strict,
            "Replace it before the model is made",
            state=STATE[True] if strict else "",
        )

    def count_aligned(self, chosen: Selection, settings: config.Settings, trainer: Any) -> None:
        """SelfAug acted on a micro-batch with supervised tokens. Warn if no micro-batch has had an aligned one."""
        self.aligned |= len(chosen.all_aligned) > 0
        if self.aligned:
            return
        self.rows += chosen.rows
        self.batches += 1
        if self.rows >= ROWS and self.batches >= BATCHES:
            self.nothing_aligned(f"in the first {self.rows} rows", settings, trainer)

    def count_anchors(self, chosen: Selection, settings: config.Settings) -> None:
        """A step with SELFAUG_ANCHORS=1. Warn if there have been many rows and no anchor."""
        self.awaited += chosen.rows
        self.anchors += chosen.anchors
        if self.awaited >= AWAITED:
            self.no_anchors(f"in the first {self.awaited} rows", settings)

    def no_anchors(self, seen: str, settings: config.Settings) -> None:
        """Warn that no row was an anchor, if none was."""
        if not self.anchors:
            self.warn(
                f"SELFAUG_ANCHORS=1, and {seen} every row has labels: the trainer may have left the others out.",
                settings.strict,
                "Check that rows whose labels are all -100 reach the model (TRL drops them where it cuts rows: "
                "max_length=None)",
                state=STATE[True] if settings.strict else "The rows that came are trained with SelfAug.",
            )

    def nothing_aligned(self, seen: str, settings: config.Settings, trainer: Any) -> None:
        """Warn that the KL has been 0 because no token was aligned."""
        labels = "" if settings.positions in ("output", "all") else " (those whose label is -100, without padding)"
        self.warn(
            f"SelfAug is on but has nothing to align: {seen}, no token is at the {settings.positions} positions"
            f"{labels}, so the {settings.measure} is 0.",
            settings.strict,
            _only_the_answer(trainer),
        )

    def _goes_past(self, what: str, by: str, strict: bool) -> None:
        self.warn(
            f"SelfAug is on and the model trains on labels, yet no step goes through SelfAug: {what}. Passed by: {by}.",
            strict,
        )

    def warn(self, message: str, strict: bool, do: str = DO, state: str | None = None) -> None:
        """Warn once in this run.

        Args:
            message: what happened.
            strict: raise a :class:`BypassError` instead.
            do: what the user may do about it, a sentence without its full stop.
            state: what becomes of the run; by default, that the model trains on its stock loss.
        """
        message = " ".join(
            part for part in (message, STATE[strict] if state is None else state, f"{do}, {OFF}") if part
        )
        if strict:
            raise BypassError(message)
        if not self.warned:
            self.warned = True
            _show(message)


class _BackwardHook:
    """A hook on a loss. It is deleted with the graph of that loss, and then it knows whether backward came."""

    def __init__(self, bypass: Bypass) -> None:
        self.bypass = bypass
        self.used = False

    def __call__(self, grad: Tensor) -> None:
        self.used = self.bypass.used = True
        self.bypass.unused = 0

    def __del__(self) -> None:
        self.bypass.unused += not self.used


_BYPASSES = PerRun(Bypass)


def of(model: nn.Module) -> Bypass:
    """The counts of the run that is calling ``model``."""
    return _BYPASSES.of(model)


def models_on(model: nn.Module) -> list[tuple[Any, config.Settings]]:
    """The models within ``model`` that SelfAug is on for, with their settings."""
    aligned: list[Any] = [module for module in model.modules() if hasattr(type(module), "selfaug_aligned")]
    return [(m, settings) for m in aligned for settings in [config.read(m.config)] if settings.enabled]


def should_act(model: nn.Module, settings: config.Settings) -> bool:
    """Whether SelfAug should add its term: LoRA trains in ``model``, or all of it trains against a cache."""
    if not settings.enabled or settings.alpha == 0:
        return False
    if switch.lora_layers(model):
        return True
    return settings.reference_cache is not None and model.training and guards.trains_in_full(model)


def count_missed_call(model: nn.Module, trainer: Any) -> None:
    """Count a trainer call on labels without the term, for each model that should have had the term."""
    for module, settings in models_on(model):
        if should_act(module, settings):
            of(module).missed_by(trainer, module, settings.strict)


def end_of_run(trainer: Any) -> None:
    """Warn of a run that was too short for the counts of :class:`Bypass` to warn of it."""
    bypass = _BYPASSES.of_owner(trainer.state)
    for model, settings in models_on(trainer.model)[:1]:
        if bypass.missed and not (bypass.batches or bypass.aligned):
            bypass.computed_without(trainer, model, settings.strict)
        elif bypass.given and not bypass.used:
            bypass.never_used(_by(trainer), settings.strict)
        elif bypass.batches and not bypass.aligned:
            bypass.nothing_aligned("in the whole run", settings, trainer)
        elif bypass.awaited:
            bypass.no_anchors("in the whole run", settings)


def watch_gradients(model: Any, wrap_again: Callable[[Any], Any]) -> None:
    """At each gradient of a weight that trains, check that the model's forward is still wrapped.

    Args:
        wrap_again: wraps the forward of a model if it is not wrapped; returns that forward, or None.
    """
    parameter = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
    known = _WATCHED.get(model)
    if parameter is None or (known is not None and known() is parameter):
        return
    _WATCHED[model] = weakref.ref(parameter)
    model_ref: weakref.ref[Any] = weakref.ref(model)

    def check(grad: Tensor) -> None:
        watched = model_ref()
        if watched is None or not watched.training:
            return
        forward = wrap_again(watched)
        if forward is None:
            return
        settings = config.read(watched.config)
        if should_act(watched, settings):
            of(watched).replaced(forward, settings.strict)

    hook = torch.utils.hooks.unserializable_hook(check)
    parameter.register_hook(hook)


_WATCHED: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Parameter]] = weakref.WeakKeyDictionary()


def where(forward: Any) -> str:
    """Name, file and line of a function. It looks through our own wrappers and transformers' decorators, but not
    through functools.wraps of other libraries.
    """
    function = getattr(forward, "__func__", forward)
    while isinstance(function, functools.partial) or (
        hasattr(function, "__wrapped__")
        and (
            getattr(function, "selfaug_wrapper", None) is function
            or getattr(function, "__globals__", {}).get("__name__", "").startswith("transformers.utils.")
        )
    ):
        function = function.func if isinstance(function, functools.partial) else function.__wrapped__
        function = getattr(function, "__func__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    name = getattr(code, "co_qualname", code.co_name)  # Python 3.11
    return f"{name} ({inspect.getsourcefile(code) or code.co_filename}:{code.co_firstlineno})"


def _by(trainer: Any) -> str:
    """Which function of ``trainer`` makes the loss: the first that a library of its own has put there."""
    own = next((name for name in ("compute_loss", "training_step") if _is_own(trainer, name)), "compute_loss")
    return where(getattr(trainer, own))


def _is_own(trainer: Any, method: str) -> bool:
    """Whether a trainer has this method from a library that makes its own loss: not transformers, TRL or ms-swift."""
    return not getattr(getattr(trainer, method), "__module__", "").startswith(("transformers.", "trl.", "swift."))


def _only_the_answer(trainer: Any) -> str:
    """What to set so that this trainer trains on the answer alone."""
    name, do = "", _COLLATOR
    if trainer is not None:
        packages = [cls.__module__.partition(".")[0] for cls in type(trainer).__mro__]
        do = next((_ONLY_THE_ANSWER[package] for package in packages if package in _ONLY_THE_ANSWER), do)
        name = f" ({type(trainer).__name__})"
    return f"To train on the answer alone{name}, {do}; or align other positions (SELFAUG_POSITIONS=all)"


def _show(message: str) -> None:
    if any(category is BypassWarning for _, _, category, _, _ in warnings.filters):  # the user's filter for this one
        warnings.warn(message, BypassWarning, stacklevel=2)
        return
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame = frame.f_back
    # Calls what the filters and logging.captureWarnings() would skip. The filters stay as they are: other threads use
    # them, too.
    show = getattr(logging, "_warnings_showwarning", None) or warnings.showwarning
    show(BypassWarning(message), BypassWarning, frame.f_code.co_filename, frame.f_lineno)


_LIBRARIES = {__name__.partition(".")[0], "torch", "transformers", "accelerate", "peft", "trl", "swift", "llamafactory",
              "contextlib", "functools"}  # fmt: skip
