"""Never silently off: notice that training goes on and SelfAug's term reaches no gradient, and say whose forward it
was.
"""

from __future__ import annotations

import inspect
from typing import Any, Callable

from torch import Tensor, nn
from transformers.utils import logging

from . import config, reference

logger = logging.get_logger("transformers.selfaug")

UNUSED = 8  # losses returned and not backpropagated, MISSED trainer steps, before a word is said
MISSED = 1
ADVICE = (
    "The model trains on its stock loss. Switch off what replaces the loss or the forward (a fused kernel, a custom "
    "loss, unsloth; see docs/trainers.md), or set SELFAUG=0 to train without SelfAug on purpose."
)


class BypassError(RuntimeError):
    """SelfAug is on, and steps go past it (raised with SELFAUG_STRICT=1 only)."""


class Bypass:
    """Counts steps that went past SelfAug, until one did not or until it has been said."""

    def __init__(self) -> None:
        self.settled = False
        self.unused = 0
        self.missed = 0

    def made(self, total: Tensor, strict: bool) -> None:
        """A loss with the term in it was returned; somebody should backpropagate it."""
        if self.settled or not total.requires_grad:
            return
        total.register_hook(self._used)
        self.unused += 1
        if self.unused > UNUSED:
            self._say("the losses that the model returned were never backpropagated", "the loop that calls it", strict)

    def _used(self, grad: Tensor) -> None:
        self.settled = True

    def trainer_step_without(self, model: nn.Module, trainer: Any) -> None:
        """An HF Trainer made a step on labels in which SelfAug had no part."""
        if self.settled:
            return
        for module in model.modules():
            if not hasattr(type(module), "selfaug_aligned") or not reference.lora_layers(module):
                continue
            settings = config.read(module.config)
            if settings.enabled and settings.alpha > 0:
                self.missed += 1
                if self.missed > MISSED:
                    what = f"{type(trainer).__name__} computed its loss without it"
                    by = f"{where(type(trainer).compute_loss)}; the model's forward is {where(module.forward)}"
                    self._say(what, by, settings.strict)

    def tell(self, reason: str, forward: Callable[..., Any], strict: bool) -> None:
        """A forward was called with labels in a way that the term cannot be added to. Said once."""
        if not self.settled:
            self._tell(f"SelfAug is on but could not act: {reason}, in {where(forward)}. {ADVICE}", strict)

    def _say(self, what: str, by: str, strict: bool) -> None:
        self._tell(
            "SelfAug is on and LoRA trains on labels, yet no step goes through SelfAug: "
            f"{what}. Passed by: {by}. {ADVICE}",
            strict,
        )

    def _tell(self, message: str, strict: bool) -> None:
        self.settled = True
        if strict:
            raise BypassError(message)
        logger.warning(message)


BYPASS = Bypass()


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
