"""Training in eval mode, in which the loss is stock's: a loop that never called ``model.train()``."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import config
from ..eager import eager
from . import bypass


@eager
def watch(model: Any, outputs: Any) -> None:
    """Say that ``model`` trains in eval mode: a loss that it had computed so was backpropagated, and since then a
    weight has changed. A backward pass alone is an analysis, such as that of the gradients at the inputs.

    Args:
        outputs: of a call on labels in eval mode. Only whether its loss has a graph is read, so an evaluation with
            gradients enabled is as in stock.
    """
    before = _BACKPROPAGATED.pop(model, None)
    if before is not None and before.is_past():
        settings = config.read(model.config)
        if bypass.should_act(model, settings):
            bypass.of(model).in_evaluation(settings.strict)
    loss = outputs[0] if isinstance(outputs, tuple) else getattr(outputs, "loss", None)
    if not isinstance(loss, Tensor) or not loss.requires_grad:
        return
    model_ref: weakref.ref[nn.Module] = weakref.ref(model)

    def remember(grad: Tensor) -> None:
        watched = model_ref()
        if watched is None:
            return
        trained = next((parameter for parameter in watched.parameters() if parameter.requires_grad), None)
        if trained is not None:
            _BACKPROPAGATED[watched] = _Version(weakref.ref(trained), trained._version)

    loss.register_hook(torch.utils.hooks.unserializable_hook(remember))


def forget(model: Any) -> None:
    """``model.train()`` was called: what changes its weights from now on is no training in eval mode."""
    _BACKPROPAGATED.pop(model, None)


@dataclass(frozen=True)
class _Version:
    """How often a weight had been changed in place, as torch counts for autograd."""

    weight: weakref.ref[nn.Parameter]
    number: int

    def is_past(self) -> bool:
        weight = self.weight()
        return weight is not None and weight._version != self.number


# a weight that trains, as it was at the last backward pass of a loss in eval mode
_BACKPROPAGATED: weakref.WeakKeyDictionary[nn.Module, _Version] = weakref.WeakKeyDictionary()
