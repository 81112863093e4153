"""Small tensors between the CPU and the device of a model: what belongs together goes in one copy.

A copy to the CPU waits until the device has done all that it was told before. A copy to the device does not, if it is
asynchronous and comes from pinned memory (https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html): else
a few kilobytes wait for the whole forward pass, and the device has nothing to do until Python has caught up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def on_cpu(first: Tensor, *others: Tensor | None) -> list[Any]:
    """Copies on the CPU with the shape and the dtype of ``first``. Tensors on its device are copied together, so that
    the CPU waits once. None stays None.
    """
    tensors = [first, *(None if t is None else t.to(first.dtype).expand_as(first) for t in others)]
    together = [t for t in tensors if t is not None and t.device == first.device]
    copied = iter(torch.stack(together).cpu())
    return [t if t is None else next(copied) if t.device == first.device else t.cpu() for t in tensors]


def on_device(device: torch.device, *tensors: Tensor) -> list[Tensor]:
    """Tensors of the CPU on ``device``, by one copy for all, which does not wait if the device is a GPU of CUDA or
    ROCm. Tensors that are not all on the CPU, or that stay there, are moved one by one.
    """
    if device.type == "cpu" or any(tensor.device.type != "cpu" for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    ends = [0]
    for tensor in tensors:  # each begins at a multiple of 8 bytes, as a view of another dtype has to
        ends.append(-(-(ends[-1] + tensor.numel() * tensor.element_size()) // 8) * 8)
    pinned = device.type == "cuda" and torch.cuda.is_initialized()
    packed = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pinned)
    for part, tensor in zip(_parts(packed, ends, tensors), tensors):
        part.copy_(tensor)
    return list(_parts(packed.to(device, non_blocking=pinned), ends, tensors))


def _parts(packed: Tensor, ends: list[int], tensors: tuple[Tensor, ...]) -> Iterator[Tensor]:
    """Views into ``packed`` (bytes,) with the shapes and dtypes of ``tensors``."""
    for start, tensor in zip(ends, tensors):
        part = packed[start : start + tensor.numel() * tensor.element_size()]
        yield part.view(tensor.dtype).view(tensor.shape)
