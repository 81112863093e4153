"""What patched transformers calls: :class:`SelfAligned`, the first base class of ``Qwen2ForCausalLM``.

It wraps ``forward``: the class's own, one that a subclass or another library puts in its place on the class before a
model is made (Liger), and one that is assigned to an instance (TRL's fused heads). A wrapped forward is the stock
one, argument for argument, unless the model is training LoRA on labels; then the loss gains ``alpha * KL``
(:mod:`.loss`). Signature, name and ``__wrapped__`` stay those of the function inside.
"""

from __future__ import annotations

import functools
import inspect
from types import MethodType
from typing import Any, Callable

import torch
from torch import nn

from . import config, step, trainers


class SelfAligned:
    """Mixin that keeps whatever ``forward`` is in force wrapped. It has no state and no ``__init__``."""

    selfaug_aligned = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _wrap_class(cls, stock=cls.__module__.startswith("transformers.models.qwen2."))

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        for owner in cls.__mro__:
            if "forward" in vars(owner):
                _wrap_class(owner)
                break
        trainers.attach()
        return super().__new__(cls)

    def train(self, mode: bool = True) -> Any:
        trainers.attach()  # the Trainer may have been imported after the model was made
        return super().train(mode)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward" and callable(value) and not _is_wrapped(value):
            value = MethodType(wrap(_unbound(value, self)), self)
        super().__setattr__(name, value)


def wrap(forward: Callable[..., Any], stock: bool = False) -> Callable[..., Any]:
    """``forward``, a function of (self, ...), with SelfAug around it. ``stock``: it is transformers' own."""

    @functools.wraps(forward)
    def selfaug_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if _concerned(self, kwargs):
            return step.run(self, forward, stock, args, kwargs)
        return forward(self, *args, **kwargs)

    selfaug_forward.selfaug_wrapper = selfaug_forward  # type: ignore[attr-defined]
    return selfaug_forward


def _concerned(model: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether SelfAug may have a part in this call; the cheap half of the answer."""
    if model.training:
        return torch.is_grad_enabled() and config.read(model.config).enabled
    # trainers.step: a Trainer that keeps the labels from the model; set in evaluation only where the term is wanted.
    # Read, not called: a compiled forward without labels must go through here whole
    labelled = kwargs.get("labels") is not None or trainers.step is not None
    return labelled and config.read(model.config).evaluation


def stock_forward(model: nn.Module) -> Callable[..., Any]:
    """``forward`` as transformers wrote it, a function of (self, ...)."""
    return next(vars(c)["forward"] for c in type(model).__mro__ if "forward" in vars(c)).__wrapped__


def _is_wrapped(forward: Any) -> bool:
    function = getattr(forward, "__func__", forward)
    # identity, because functools.wraps in other libraries copies our mark onto functions that call ours
    return getattr(function, "selfaug_wrapper", None) is function


def _wrap_class(cls: type, stock: bool = False) -> None:
    forward = vars(cls).get("forward")
    if inspect.isfunction(forward) and not _is_wrapped(forward):
        cls.forward = wrap(forward, stock)  # type: ignore[attr-defined]


def _unbound(forward: Callable[..., Any], instance: Any) -> Callable[..., Any]:
    """A function of (self, ...) that calls ``forward``, which was about to be assigned to ``instance``."""
    if inspect.ismethod(forward) and forward.__self__ is instance:
        return forward.__func__

    @functools.wraps(forward)
    def unbound(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    # inspect must not take the first argument of a function that has lost its self for ours
    unbound.__signature__ = _with_self(forward)  # type: ignore[attr-defined]
    return unbound


def _with_self(forward: Callable[..., Any]) -> inspect.Signature:
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(forward)
    others = [p.replace(name="self_") if p.name == "self" else p for p in signature.parameters.values()]
    return signature.replace(parameters=[self, *others])
