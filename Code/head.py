"""The head of a sharded model: every chunk of the loss within one call of the module, so that its weight is gathered
once.

FSDP and DeepSpeed ZeRO-3 gather a module's weight when the module is called and let go of it afterwards. Calling the
head once per chunk would gather the vocabulary matrix once per chunk.
"""

from __future__ import annotations

from typing import Callable, TypeVar

from torch import Tensor, nn

from .eager import eager_around

T = TypeVar("T")


@eager_around
def once_gathered(head: nn.Module, hidden: Tensor, compute: Callable[[nn.Module, Tensor], T]) -> T:
    """``compute(head, hidden)``; where a call of ``head`` gathers its weight, within one such call.

    ``compute`` then gets a plain ``nn.Linear`` with the gathered weight. What it returns passes through the hooks of
    the sharding library: a tuple of tensors.
    """
    linear = _sharded_linear(head)
    if linear is None:
        return compute(head, hidden)

    def forward(h: Tensor) -> T:
        return compute(_plain(linear), h)

    linear.forward = forward  # type: ignore[method-assign, assignment]
    try:
        return head(hidden)
    finally:
        del linear.forward


def _sharded_linear(head: nn.Module) -> nn.Linear | None:
    """The linear layer in ``head``, if it is a unit of its own under FSDP1, FSDP2 or ZeRO-3; else None."""
    inner = head
    while isinstance(vars(inner).get("_modules", {}).get("_fsdp_wrapped_module"), nn.Module):
        inner = inner._modules["_fsdp_wrapped_module"]  # type: ignore[assignment]
    if not isinstance(inner, nn.Linear) or hasattr(type(inner), "adapter_layer_names") or "forward" in vars(inner):
        return None
    fsdp1 = inner is not head
    fsdp2 = any(cls.__name__ == "FSDPModule" for cls in type(inner).__mro__)
    zero3 = hasattr(inner.weight, "ds_id") and inner.weight.numel() == 0
    return inner if fsdp1 or fsdp2 or zero3 else None


def _plain(linear: nn.Linear) -> nn.Linear:
    """``linear`` without its hooks, on the same tensors."""
    plain = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(plain)
    plain._parameters.update(weight=linear.weight, bias=linear.bias)
    return plain
