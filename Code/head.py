"""The head of a sharded model: every chunk of the loss within one call of the module, so that its weight is gathered
once.

FSDP and DeepSpeed ZeRO-3 gather a module's weight when the module is called and let go of it afterwards. Calling the
head once per chunk would gather the vocabulary matrix once per chunk, and as often on each process as it has chunks.
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
    return inner if inner is not head or _gathers(inner) else None


def _gathers(module: nn.Module) -> bool:
    """Whether FSDP or ZeRO-3 gathers weights of this very module when it is called, if they are not there yet."""
    fsdp = any(cls.__name__ in ("FSDPModule", "FullyShardedDataParallel") for cls in type(module).__mro__)
    return fsdp or any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False))


def is_sharded(model: nn.Module) -> bool:
    """Whether modules within ``model`` gather weights when they are called. Then every process has to call the same
    ones, or they wait for each other forever.
    """
    return any(_gathers(module) for module in model.modules())


def trains_sharded(head: nn.Module) -> bool:
    """Whether ``head`` has something to train (LoRA, ``modules_to_save``) in modules that gather their weights. Its
    gradient is then the sharding library's business, in one call of the module within autograd's own graph.
    """
    return any(parameter.requires_grad for parameter in head.parameters()) and is_sharded(head)


def _plain(linear: nn.Linear) -> nn.Linear:
    """``linear`` without its hooks, on the same tensors."""
    plain = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(plain)
    plain._parameters.update(weight=linear.weight, bias=linear.bias)
    return plain
