"""Never silently off: notice that training goes on and SelfAug's term reaches no gradient, and say whose forward it
was.

What is said here is about the user's result, so it is a warning of Python's, not a line of a log: loggers are often
silenced, and `warnings.filterwarnings("ignore")` stands in many scripts.
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

from . import config
from .eager import eager
from .reference import guards, switch
from .runs import PerRun

UNUSED = 8  # losses thrown away and not backpropagated, MISSED trainer steps, before warning
MISSED = 1
ROWS, BATCHES = 16, 4  # of both, this many without an aligned token, before warning
STATE = {False: "The model trains on its stock loss.", True: "SELFAUG_STRICT=1 makes this an error."}
DO = "Switch off what replaces the loss or the forward (a fused kernel, a custom loss, unsloth; see docs/trainers.md)"
OFF = "or set SELFAUG=0 to train without SelfAug on purpose."
# the trainer's own switch, by the package that its class comes from
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
    """Counts the steps of one run that went past SelfAug: until it has been said, and to the end if that is an
    error.
    """

    def __init__(self) -> None:
        self.said = False
        self.used = False  # a loss with the term in it was backpropagated
        self.unused = 0
        self.missed = 0
        self.rows = self.batches = 0  # that had no token to align
        self.aligned = False  # some token was

    @eager
    def made(self, total: Tensor, strict: bool) -> None:
        """A loss with the term in it was returned; somebody should backpropagate it."""
        if self.used or not total.requires_grad:  # after good steps, a loss that is only looked at is no bypass
            return
        if self.unused > UNUSED:
            self._past("the losses that the model returned were never backpropagated", "the loop that calls it", strict)
        total.register_hook(_Witness(self))

    def missed_by(self, trainer: Any, model: nn.Module, strict: bool) -> None:
        """An HF Trainer made a step on labels in which SelfAug had no part."""
        self.missed += 1
        if self.missed > MISSED:
            what = f"{type(trainer).__name__} computed its loss without it"
            own = next((name for name in ("compute_loss", "training_step") if _is_own(trainer, name)), "compute_loss")
            self._past(what, f"{where(getattr(trainer, own))}; the model's forward is {where(model.forward)}", strict)

    def tell(self, reason: str, forward: Callable[..., Any], strict: bool, do: str = DO) -> None:
        """A forward was called with labels in a way that the term cannot be added to."""
        self.say(f"SelfAug is on but could not act: {reason}, in {where(forward)}.", strict, do)

    def replaced(self, forward: Callable[..., Any], strict: bool) -> None:
        """A forward that was put in place of a wrapped one has made a step; from now on it is wrapped, too."""
        self.say(
            "SelfAug is on, and a step went past it: the model's forward was replaced after the model was made, by "
            f"{where(forward)}. Steps from now on have the term.",
            strict,
            "Replace it before the model is made",
            state="" if not strict else STATE[True],
        )

    def aligns(self, rows: int, aligned: int, positions: str, trainer: Any, strict: bool) -> None:
        """SelfAug acted on a micro-batch with supervised tokens: ``rows``, and ``aligned`` tokens in all of them."""
        self.aligned |= aligned > 0
        if self.aligned:
            return
        self.rows += rows
        self.batches += 1
        if self.rows >= ROWS and self.batches >= BATCHES:
            self.nothing_aligned(f"in the first {self.rows} rows", positions, trainer, strict)

    def nothing_aligned(self, seen: str, positions: str, trainer: Any, strict: bool) -> None:
        """Say that the KL has been 0 for want of a token to compute it at."""
        labels = "" if positions in ("output", "all") else " (those whose label is -100, without padding)"
        self.say(
            f"SelfAug is on but has nothing to align: {seen}, no token is at the {positions} positions{labels}, so "
            "the KL is 0.",
            strict,
            _switch(trainer),
        )

    def _past(self, what: str, by: str, strict: bool) -> None:
        self.say(
            f"SelfAug is on and the model trains on labels, yet no step goes through SelfAug: {what}. Passed by: {by}.",
            strict,
        )

    def say(self, message: str, strict: bool, do: str = DO, state: str | None = None) -> None:
        """Warn, once; with SELFAUG_STRICT=1, raise."""
        message = " ".join(
            part for part in (message, STATE[strict] if state is None else state, f"{do}, {OFF}") if part
        )
        if strict:
            raise BypassError(message)
        if not self.said:
            self.said = True
            _show(message)


class _Witness:
    """A hook on a loss, which goes when nothing can be backpropagated through that loss any more."""

    def __init__(self, bypass: Bypass) -> None:
        self.bypass = bypass
        self.used = False

    def __call__(self, grad: Tensor) -> None:
        self.used = self.bypass.used = True
        self.bypass.unused = 0

    def __del__(self) -> None:
        self.bypass.unused += not self.used


_OF = PerRun(Bypass)


def of(model: nn.Module) -> Bypass:
    """What is known of the run that ``model`` makes a step of."""
    return _OF.of(model)


def models_on(model: nn.Module) -> list[tuple[Any, config.Settings]]:
    """The models within ``model`` that SelfAug is on for, with their settings."""
    aligned = [module for module in model.modules() if hasattr(type(module), "selfaug_aligned")]
    return [(m, s) for m in aligned for s in [config.read(m.config)] if s.enabled]


def should_act(model: nn.Module, settings: config.Settings) -> bool:
    """Whether what trains in ``model`` is what SelfAug is for: LoRA, or the whole model against a cache."""
    if not settings.enabled or settings.alpha == 0:
        return False
    if switch.lora_layers(model):
        return True
    return settings.reference_cache is not None and model.training and guards.trains_in_full(model)


def trainer_step_without(model: nn.Module, trainer: Any) -> None:
    """An HF Trainer made a step on labels in which SelfAug had no part: count it for the model that should have."""
    for module, settings in models_on(model):
        if should_act(module, settings):
            of(module).missed_by(trainer, module, settings.strict)


def end_of(trainer: Any) -> None:
    """A run is over: it may have been too short for anything to be said about it yet."""
    bypass = _OF.of_owner(trainer.state)
    if bypass.batches and not bypass.aligned:
        for _, settings in models_on(trainer.model)[:1]:
            bypass.nothing_aligned("in the whole run", settings.positions, trainer, settings.strict)


def tell_replica(model: nn.Module, strict: bool) -> None:
    """``nn.DataParallel`` called a copy of the model whose weights are no parameters, so whose LoRA cannot be told
    from frozen weights.
    """
    of(model).say(
        "SelfAug is on but could not act: nn.DataParallel calls copies of the model.",
        strict,
        "Start the script with torchrun or `accelerate launch`, or show it one GPU (CUDA_VISIBLE_DEVICES=0)",
    )


def watch_gradients(model: nn.Module, unwrapped: Callable[[Any], Any]) -> None:
    """At each gradient of a weight that trains, look whether the model's forward is still a wrapped one.

    Args:
        unwrapped: of a model, the forward in force if it is not, and from then on it is; None if it is.
    """
    parameter = next((parameter for parameter in model.parameters() if parameter.requires_grad), None)
    known = _WATCHED.get(model)
    if parameter is None or (known is not None and known() is parameter):
        return
    _WATCHED[model] = weakref.ref(parameter)
    ref = weakref.ref(model)

    @torch.utils.hooks.unserializable_hook
    def look(grad: Tensor) -> None:
        of_hook: Any = ref()
        forward = unwrapped(of_hook) if of_hook is not None and of_hook.training else None
        if forward is None:
            return
        settings = config.read(of_hook.config)
        if should_act(of_hook, settings):
            of(of_hook).replaced(forward, settings.strict)

    parameter.register_hook(look)


_WATCHED: weakref.WeakKeyDictionary[nn.Module, weakref.ref[nn.Parameter]] = weakref.WeakKeyDictionary()


def where(forward: Any) -> str:
    """Name, module, file and line of a function, seen through our own wrappers and transformers' decorators but not
    through functools.wraps of others.
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


def _is_own(trainer: Any, method: str) -> bool:
    """Whether a trainer has this method from neither transformers nor another library that leaves the loss to it."""
    return not getattr(getattr(trainer, method), "__module__", "").startswith(("transformers.", "trl.", "swift."))


def _switch(trainer: Any) -> str:
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
    # past the filters, and without changing them: other threads use them, too; and past logging.captureWarnings()
    show = getattr(logging, "_warnings_showwarning", None) or warnings.showwarning
    show(BypassWarning(message), BypassWarning, frame.f_code.co_filename, frame.f_lineno)


_LIBRARIES = {__name__.partition(".")[0], "torch", "transformers", "accelerate", "peft", "trl", "swift", "llamafactory",
              "contextlib", "functools"}  # fmt: skip
