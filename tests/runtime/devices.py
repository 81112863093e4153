"""Two devices where there is one: tensors say that they are on ``cuda:0`` or ``cuda:1``, and an operation on tensors of
both fails as it does on real ones. The numbers stay on the CPU. It is noted where the CPU waits for a
device, and what is copied to one.
"""

from __future__ import annotations

import sys

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

CPU, FIRST, SECOND = torch.device("cpu"), torch.device("cuda", 0), torch.device("cuda", 1)
_COPIES = {Tensor.copy_, Tensor.__setitem__, Tensor.__getitem__, torch.autograd.grad}  # take values from anywhere
# the size or the value of what they return is known only when the device is done
_WAIT = {
    *(getattr(Tensor, f"__{name}__") for name in ("bool", "int", "float", "index")),
    *(getattr(Tensor, name) for name in ("item", "tolist", "numpy", "nonzero", "unique", "masked_select", "equal")),
    *(torch.nonzero, torch.unique, torch.masked_select, torch.equal, torch.allclose, torch.argwhere),
}
_FROM_SELF = {Tensor.new_zeros, Tensor.new_empty, Tensor.new_full, Tensor.new_ones, Tensor.new_tensor}


class _Align(AlignDevicesHook):
    """The hook that accelerate gives to each module of a model that is spread over devices."""

    def init_hook(self, module):
        return module  # the weights are there


class Devices(TorchFunctionMode):
    """Within: every tensor has the device that :meth:`put` or an operation gave it."""

    def __init__(self):
        super().__init__()
        self.of = WeakTensorKeyDictionary()
        self.waits, self.copies = [], []  # (what was called, the innermost module of a library that called it)

    def put(self, tensor, device):
        self.of[tensor] = device
        return tensor

    def place(self, module, device, **options):
        """A module's weights are on ``device``, and accelerate moves what it is called with there."""
        for tensor in (*module.parameters(), *module.buffers()):
            self.put(tensor, device)
        add_hook_to_module(module, _Align(device, **options))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:
            return self.of.get(args[0], CPU)
        if func in (Tensor.to, Tensor.cpu, Tensor.cuda):
            return self._moved(func, *args, **kwargs)
        wanted = kwargs.pop("device", None)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        by_mask = func in (Tensor.__getitem__, Tensor.__setitem__) and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
        )
        if (by_mask or func in _WAIT) and self.of.get(args[0], CPU) != CPU:
            self.waits.append((func.__name__, _caller()))
        if func in (*_COPIES, *_FROM_SELF):
            common = {self.of.get(tensors[0], CPU)}
        else:
            common = {self.of.get(x, CPU) for x in tensors if x.ndim or self.of.get(x, CPU) != CPU}
        if len(common) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {common}")
        result = func(*args, **kwargs)
        device = torch.device(wanted) if wanted is not None else next(iter(common), CPU)
        sources = args[1] if func is torch.autograd.grad else None
        for i, x in enumerate(tree_leaves(result)):
            if isinstance(x, Tensor) and not any(x is given for given in tensors):
                self.put(x, self.of.get(sources[i], CPU) if sources is not None else device)
        return result

    def _moved(self, func, tensor, *args, **kwargs):
        here = self.of.get(tensor, CPU)
        device, rest = (CPU if func is Tensor.cpu else here), []
        for x in (*args, kwargs.pop("device", None)):
            if isinstance(x, Tensor):
                device = self.of.get(x, CPU)
                rest.append(x.dtype)
            elif isinstance(x, (str, torch.device)):
                device = torch.device(x)
            elif x is not None:
                rest.append(x)
        moved = tensor.to(*rest, **kwargs) if rest or kwargs else tensor
        if device != here:
            (self.waits if device == CPU else self.copies).append((f"{here} to {device}", _caller()))
        if device != here and moved is tensor:
            moved = tensor.clone()
        return self.put(moved, device) if moved is not tensor else moved


def _caller():
    """The name of the innermost module, of those on the stack, that is neither this one nor torch's."""
    frame = sys._getframe(1)
    while frame.f_globals.get("__name__", "").partition(".")[0] in (__name__, "torch"):
        frame = frame.f_back
    return frame.f_globals["__name__"]


def spread(devices: Devices, model: nn.Module):
    """The first layer and the embedding on the first device, the rest on the second; a tied head is the embedding. What
    the model returns is on the device of what it is called with.
    """
    decoder, tied = model.model, model.config.tie_word_embeddings
    for module in (decoder.embed_tokens, decoder.rotary_emb, decoder.layers[0]):
        devices.place(module, FIRST)
    for module in (decoder.layers[1], decoder.norm):
        devices.place(module, SECOND)
    devices.place(model.lm_head, FIRST if tied else SECOND)
    add_hook_to_module(model, _Align(FIRST, io_same_device=True, skip_keys="past_key_values"))
