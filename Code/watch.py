"""Never silently off: notice that training goes on and SelfAug's term reaches no gradient, and say whose forward it
was.
"""

from __future__ import annotations

import inspect
import weakref
from typing import Any, Callable

from torch import Tensor, nn
from transformers.utils import logging

from . import config
from .reference import switch

logger = logging.get_logger("transformers.selfaug")

UNUSED = 8  # losses thrown away and not backpropagated, MISSED trainer steps, before a word is said
MISSED = 1
STATE = {False: "The model trains on its stock loss.", True: "SELFAUG_STRICT=1 makes this an error."}
DO = "Switch off what replaces the loss or the forward (a fused kernel, a custom loss, unsloth; see docs/trainers.md)"
OFF = "or set SELFAUG=0 to train without SelfAug on purpose."


class BypassError(RuntimeError):
    """SelfAug is on, and steps go past it (raised with SELFAUG_STRICT=1 only)."""


class Bypass:
    """Counts the steps of one model that went past SelfAug: until one did not or until it has been said, and to the
    end if that is an error.
    """

    def __init__(self) -> None:
        self.settled = False
        self.unused = 0
        self.missed = 0

    def made(self, total: Tensor, strict: bool) -> None:
        """A loss with the term in it was returned; somebody should backpropagate it."""
        if self.settled or not total.requires_grad:  # after good steps, a loss that is only looked at is no bypass
            return
        if self.unused > UNUSED:
            self._past("the losses that the model returned were never backpropagated", "the loop that calls it", strict)
        total.register_hook(_Witness(self))

    def missed_by(self, trainer: Any, model: nn.Module, strict: bool) -> None:
        """An HF Trainer made a step on labels in which SelfAug had no part."""
        self.missed += 1
        if self.missed > MISSED:
            what = f"{type(trainer).__name__} computed its loss without it"
            by = f"{where(type(trainer).compute_loss)}; the model's forward is {where(model.forward)}"
            self._past(what, by, strict)

    def tell(self, reason: str, forward: Callable[..., Any], strict: bool, do: str = DO) -> None:
        """A forward was called with labels in a way that the term cannot be added to."""
        if strict or not self.settled:
            self.say(f"SelfAug is on but could not act: {reason}, in {where(forward)}.", strict, do)

    def _past(self, what: str, by: str, strict: bool) -> None:
        self.say(
            f"SelfAug is on and LoRA trains on labels, yet no step goes through SelfAug: {what}. Passed by: {by}.",
            strict,
        )

    def say(self, message: str, strict: bool, do: str = DO) -> None:
        message = f"{message} {STATE[strict]} {do}, {OFF}"
        if strict:
            raise BypassError(message)
        if not self.settled:
            self.settled = True
            logger.warning(message)


class _Witness:
    """A hook on a loss, which goes when nothing can be backpropagated through that loss any more."""

    def __init__(self, bypass: Bypass) -> None:
        self.bypass = bypass
        self.used = False

    def __call__(self, grad: Tensor) -> None:
        self.used = self.bypass.settled = True
        self.bypass.unused = 0

    def __del__(self) -> None:
        self.bypass.unused += not self.used


_OF: weakref.WeakKeyDictionary[nn.Module, Bypass] = weakref.WeakKeyDictionary()


def of(model: nn.Module) -> Bypass:
    """What is known of ``model``."""
    return _OF.setdefault(model, Bypass())


def trainer_step_without(model: nn.Module, trainer: Any) -> None:
    """An HF Trainer made a step on labels in which SelfAug had no part: count it for the model that should have."""
    if isinstance(model, nn.DataParallel) and _REPLICAS.settled:  # its replicas have said why
        return
    for module in model.modules():
        if not hasattr(type(module), "selfaug_aligned"):
            continue
        settings = config.read(module.config)
        if settings.enabled and settings.alpha > 0 and switch.lora_layers(module):
            of(module).missed_by(trainer, module, settings.strict)


def tell_replica(strict: bool) -> None:
    """``nn.DataParallel`` called a copy of the model whose weights are no parameters, so whose LoRA cannot be told
    from frozen weights. A copy lives for one step: said once for all of them.
    """
    _REPLICAS.say(
        "SelfAug is on but could not act: nn.DataParallel calls copies of the model.",
        strict,
        "Start the script with torchrun or `accelerate launch`, or show it one GPU (CUDA_VISIBLE_DEVICES=0)",
    )


_REPLICAS = Bypass()


def where(forward: Any) -> str:
    """Name, module, file and line of a function, seen through our own wrapper and transformers' decorators but not
    through functools.wraps of others.
    """
    function = getattr(forward, "__func__", forward)
    while hasattr(function, "__wrapped__") and (
        getattr(function, "selfaug_wrapper", None) is function
        or getattr(function, "__globals__", {}).get("__name__", "").startswith("transformers.utils.")
    ):
        function = function.__wrapped__
    code = getattr(function, "__code__", None)
    if code is None:
        return repr(function)
    name = getattr(code, "co_qualname", code.co_name)  # Python 3.11
    return f"{name} ({inspect.getsourcefile(code) or code.co_filename}:{code.co_firstlineno})"
