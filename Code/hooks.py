"""The two base classes that the patched files import: :class:`.unpatched.ReferenceSwitch` for peft's ``LoraLayer``, and
:class:`SelfAligned` for the causal language models of transformers.

:class:`SelfAligned` wraps ``forward``: the one of the class, one that a subclass or another library puts on the class
(Liger), and one that is put on an instance (TRL's fused heads). Another library may replace a forward at any time, so
the class checks again when the model is called, when it is set to train, and when a gradient arrives.

A wrapped forward does what the forward inside does, unless the model trains LoRA on labels; then ``alpha * KL``
(:mod:`.loss`) is added to the loss. It has the signature, the name and the ``__wrapped__`` of the forward inside.
"""

from __future__ import annotations

import functools
import inspect
import sys
from types import MethodType
from typing import Any, Callable

import torch
from torch import nn

from . import config, family, step
from .eager import eager
from .reference import cache
from .trainers import attach, bypass, evaluation
from .unpatched import CAN_TELL, ReferenceSwitch

__all__ = ["ReferenceSwitch", "SelfAligned"]


class SelfAligned:
    """Mixin that keeps the ``forward`` in force wrapped. It has no state and no ``__init__``."""

    selfaug_aligned = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if SelfAligned in cls.__bases__ and "forward" in vars(cls):  # that of a patched file, or of a copy of one
            setattr(cls, family.STOCK, vars(cls)["forward"])
        # a copy's forward may have been edited, so it runs as it is
        _wrap_class(cls, stock=family.STOCK in vars(cls) and cls.__module__.startswith(family.MODELS))

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        _wrap_class_in_force(cls)
        attach.to_trainer()
        return super().__new__(cls)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: Any = self
        if module.training:
            keep_wrapped(self)
        return super().__call__(*args, **kwargs)  # type: ignore[misc]  # the next class in line, an nn.Module, has it

    def train(self, mode: bool = True) -> Any:
        module: Any = self
        attach.to_trainer()  # the Trainer may be imported after the model is made
        keep_wrapped(self)
        if mode and not module.training:
            cache.hash_again(module)
        if mode:  # peft until 0.20 calls model.forward, past __call__
            bypass.watch_gradients(self, keep_wrapped)
            evaluation.forget(self)
            # before training begins: a bad setting is an error, and a good one becomes fit to be saved with the model
            config.read(getattr(self, "config", None))
        return super().train(mode)  # type: ignore[misc]  # likewise

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward" and callable(value) and not _is_wrapped(value):
            value = MethodType(wrap(_unbound(value, self)), self)
        super().__setattr__(name, value)


def wrap(forward: Callable[..., Any], stock: bool = False) -> Callable[..., Any]:
    """``forward``, a function of (self, ...), with SelfAug around it. ``stock``: it is transformers' own."""
    names = list(inspect.signature(forward).parameters)
    labels_at = names.index("labels") - 1 if "labels" in names else sys.maxsize  # among the positional arguments

    @functools.wraps(forward)
    def selfaug_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        labels = args[labels_at] if len(args) > labels_at else kwargs.get("labels")
        if _may_act(self, kwargs.get("shift_labels") if labels is None else labels):
            return step.run(self, forward, stock, args, kwargs)
        outputs = forward(self, *args, **kwargs)
        evaluates = labels is not None and not self.training and torch.is_grad_enabled()
        if evaluates and CAN_TELL and not torch.compiler.is_compiling():  # a graph stays whole, as in stock
            evaluation.watch(self, outputs)
        return outputs

    vars(selfaug_forward)["selfaug_wrapper"] = selfaug_forward
    return selfaug_forward


def _may_act(model: nn.Module, labels: Any) -> bool:
    """Whether SelfAug may have a part in this call: the cheap half of the answer. :func:`.step.run` finds the rest.

    Args:
        labels: those in the call, or None. Inside a method of a Trainer, the Trainer may have kept them.
    """
    # A variable is read here, where a function would be called: a compiled forward without labels stays one graph.
    if labels is None and attach.current is None:
        return False
    if model.training:
        return torch.is_grad_enabled()
    return config.read(model.config).evaluation


@eager
def keep_wrapped(model: Any) -> Callable[..., Any] | None:
    """Wrap the forward in force if it is not wrapped. Returns it then, and None otherwise."""
    own: Any = vars(model).get("forward")
    if own is None:
        return _wrap_class_in_force(type(model))
    if not callable(own) or _is_wrapped(own):
        return None
    model.forward = own  # SelfAligned.__setattr__ wraps it
    forward: Callable[..., Any] = own
    return forward


def _is_wrapped(forward: Any) -> bool:
    function = getattr(forward, "__func__", forward)
    # by identity: functools.wraps in other libraries copies our mark onto functions that call ours
    return getattr(function, "selfaug_wrapper", None) is function


def _wrap_class_in_force(cls: type) -> Callable[..., Any] | None:
    for owner in cls.__mro__:
        if "forward" in vars(owner):
            return _wrap_class(owner)
    return None


def _wrap_class(cls: type, stock: bool = False) -> Callable[..., Any] | None:
    """Wrap the forward that ``cls`` itself defines. Returns it if it was not wrapped, and None otherwise."""
    forward = vars(cls).get("forward")
    if not inspect.isfunction(forward) or _is_wrapped(forward):
        return None
    setattr(cls, "forward", wrap(forward, stock))  # noqa: B010  # mypy knows no such attribute of a type
    return forward


def _unbound(forward: Callable[..., Any], instance: Any) -> Callable[..., Any]:
    """A function of (self, ...) that calls ``forward``, which is being assigned to ``instance``."""
    if inspect.ismethod(forward) and forward.__self__ is instance:
        return forward.__func__

    @functools.wraps(forward)
    def unbound(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    # without this, inspect would take the first argument of `forward` for our self
    vars(unbound)["__signature__"] = _with_self(forward)
    return unbound


def _with_self(forward: Callable[..., Any]) -> inspect.Signature:
    self = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.signature(forward)
    others = [p.replace(name="self_") if p.name == "self" else p for p in signature.parameters.values()]
    return signature.replace(parameters=[self, *others])
