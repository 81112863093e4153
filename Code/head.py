"""The head of a model: the layer that turns hidden states into logits, and how FSDP or ZeRO-3 may have sharded it.

FSDP and DeepSpeed ZeRO-3 gather a module's weight when the module is called and free it afterwards. A call of the head
for each chunk of positions would gather the vocabulary matrix once per chunk, and processes with different numbers of
chunks would wait for each other forever. So the loss computes all chunks within one call of a sharded head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .family import FamilyHead


def linear(head: nn.Module) -> nn.Linear | None:
    """The ``nn.Linear`` inside FSDP1's wrappers, or ``head`` itself. None for any other head, such as a LoRA layer."""
    inner = head
    while isinstance(wrapped := vars(inner).get("_modules", {}).get("_fsdp_wrapped_module"), nn.Module):
        inner = wrapped
    return inner if isinstance(inner, nn.Linear) and not hasattr(type(inner), "adapter_layer_names") else None


def sharded_linear(head: nn.Module) -> nn.Linear | None:
    """:func:`linear` of a head that FSDP1, FSDP2 or ZeRO-3 gathers by itself. None for any other head."""
    inner = linear(head)
    if inner is None or "forward" in vars(inner):
        return None
    return inner if inner is not head or _gathers(inner) else None


def frozen_weight(head: Any) -> Tensor | None:
    """The (V, H) weight of a head that is a frozen matrix, in the dtype of a product with it. None for any other head:
    that one has to be called.
    """
    if not is_frozen_matrix(head):
        return None
    weight: Tensor = head.weight
    return weight.to(_matmul_dtype(weight))


def is_frozen_matrix(head: Any) -> bool:
    """Whether ``head`` is a frozen matrix and nothing else: no bias, no hook, no forward of its own, no subclass."""
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return False
    if type(head.weight) not in (nn.Parameter, Tensor) or head.weight.dim() != 2 or head.weight.numel() == 0:
        return False
    return not (head._forward_hooks or head._forward_pre_hooks or "forward" in vars(head))


def _matmul_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of a matrix product with ``weight``, which autocast may change. One cast saves a cast per chunk."""
    device = weight.device.type
    if device == "meta":
        return weight.dtype
    if hasattr(torch, "get_autocast_dtype"):  # torch 2.4
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    if device == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else weight.dtype
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else weight.dtype


def without_hooks(layer: nn.Linear) -> nn.Linear:
    """A new ``nn.Linear`` with the same weight and bias and without hooks, which the sharding library would run."""
    plain = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(plain)
    tensors: dict[str, Any] = {"weight": layer.weight, "bias": layer.bias}  # under FSDP1 they are views, no parameters
    plain._parameters.update(tensors)
    return plain


def is_sharded(model: nn.Module) -> bool:
    """Whether modules in ``model`` gather weights when they are called. Then every process has to call the same
    modules, or the processes wait for each other forever.
    """
    return any(_gathers(module) for module in model.modules())


def has_own_graph(head: nn.Module) -> bool:
    """Whether ``head`` has to be called once for all positions, in autograd's own graph: it gathers weights, and it
    trains (LoRA, ``modules_to_save``: the sharding library computes its gradient) or is a family's own head.
    """
    trains = any(parameter.requires_grad for parameter in head.parameters())
    return (trains or isinstance(head, FamilyHead)) and is_sharded(head)


def _gathers(module: nn.Module) -> bool:
    """Whether FSDP or ZeRO-3 gathers the weights of this module itself when the module is called."""
    fsdp = any(cls.__name__ in ("FSDPModule", "FullyShardedDataParallel") for cls in type(module).__mro__)
    return fsdp or any(hasattr(parameter, "ds_id") for parameter in module.parameters(recurse=False))
