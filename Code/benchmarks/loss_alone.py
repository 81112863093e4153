"""The loss alone at the sizes of a model, forward and backward: which block and which chunk suit the GPU."""

from __future__ import annotations

import functools
import itertools
import statistics
from typing import Any, Callable

import torch
from torch import Tensor, nn

from selfaug import loss

from . import slice as sliced
from .budget import Budget
from .device import Device, attempt

BLOCKS = (16, 64, 256)  # MiB, see loss._BLOCK
CHUNKS = (1, 2, 4)  # times loss.auto_chunk_size
STEPS = 4  # for a figure


def by_size(
    shape: str, T: int, dtype: torch.dtype, device: Device, budget: Budget, share: float
) -> list[dict[str, Any]]:
    """The loss alone, forward and backward, by block and chunk: seconds, and bytes at the most. The first row has the
    default sizes, and where the CPU waits. There are as many rows as fit into ``share`` seconds of the budget.
    """
    if budget.refusal(0):
        return []
    until = budget.left() - share
    size = loss.auto_chunk_size(sliced.SHAPES[shape]["vocab_size"], device.torch)
    inputs, problem = attempt(_inputs, shape, T, dtype, device)
    if inputs is None:
        return [problem]
    name = "_BLOCK" if device.is_gpu else "_CPU_BLOCK"
    default: int = getattr(loss, name)
    rows: list[dict[str, Any]] = []
    try:
        for block, times in dict.fromkeys([(default >> 20, 1), *itertools.product(BLOCKS, CHUNKS)]):
            last = (rows[-1].get("seconds") or 0.0) if rows else 0.0
            if rows and budget.left() - STEPS * last < until:
                break
            setattr(loss, name, block << 20)
            found, problem = attempt(_measured, device, functools.partial(_step, inputs, times * size))
            rows.append({"T": T, "block_mib": block, "chunk": times * size, **(found or problem)})
            if len(rows) == 1:
                waits, problem = attempt(device.waits, functools.partial(_step, inputs, size))
                rows[0].update(waits or problem, chunks=-(-len(inputs[1]) // size))
    finally:
        setattr(loss, name, default)
    return rows


def count_kernels(
    rows: list[dict[str, Any]], shape: str, T: int, dtype: torch.dtype, device: Device, budget: Budget
) -> None:
    """Adds to the first of the rows what the GPU runs with the default sizes."""
    if not rows or rows[0].get("seconds") is None or budget.refusal(10 * rows[0]["seconds"]):
        return

    def count() -> dict[str, Any]:
        return device.kernels(functools.partial(_step, _inputs(shape, T, dtype, device), rows[0]["chunk"]))

    device.empty()
    found, problem = attempt(count)
    rows[0].update(found or problem)


def _inputs(shape: str, T: int, dtype: torch.dtype, device: Device) -> tuple[Tensor, Tensor, Tensor, Tensor, nn.Linear]:
    """Hidden states, the reference's, next labels, weights and head of a loss at the sizes of a model."""
    H, V = (int(sliced.SHAPES[shape][name]) for name in ("hidden_size", "vocab_size"))
    torch.manual_seed(0)
    with device.torch:
        head = nn.Linear(H, V, bias=False, dtype=dtype).requires_grad_(False)
        hidden = torch.randn(T, H, dtype=dtype, requires_grad=True)
        states = torch.randn(int(sliced.PROMPT * T), H, dtype=dtype)
        weight = torch.ones(len(states))
    return hidden, states, sliced.batch(T, V)["labels"][0].to(device.torch), weight, head


def _step(inputs: tuple[Any, ...], size: int) -> None:
    hidden, states, labels, weight, head = inputs
    loss.chunked_loss(hidden, states, labels, weight, head, head, size).total.backward()
    hidden.grad = None


def _measured(device: Device, work: Callable[[], object]) -> dict[str, Any]:
    """Seconds, the median of all steps but one, which is not counted; and bytes above those before, at the most."""
    device.empty()
    before = device.restart_peak()
    work()
    seconds = statistics.median(device.seconds(work) for _ in range(STEPS - 1))
    peak = device.peak()
    return {"seconds": seconds, "above": None if peak is None or before is None else peak - before}
