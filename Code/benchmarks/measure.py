"""Measurements of a step: its time, with the variants in turn in one process; its floating-point operations; and the
peak memory of its tensors, by torch's profiler or, with nothing allocated, on the meta device.
"""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selfaug import loss
from selfaug.check.cost import Operators, flash_attention
from selfaug.reference import decoder
from selfaug.trainers import metrics

from . import slice as sliced

_chunk_size = loss.auto_chunk_size


def step(name: str, model: Any, data: dict[str, Tensor]) -> int:
    """Forward and backward of one variant, as often as its micro-batches take to be alike. The gradients are dropped.
    Returns how often that is.
    """
    steps = sliced.STEPS.get(name, 1)
    for _ in range(steps):
        sliced.VARIANTS[name](model, data).backward()
        model.zero_grad(set_to_none=True)
    return steps


def seconds(T: int, names: list[str], rounds: int, shape: str, layers: int, checkpointing: bool) -> dict[str, Any]:
    """The median CPU seconds of each variant's step, and the median of its ratio to stock's step in the same round. The
    variants take turns; a first round is not counted.
    """
    model = sliced.model(shape, layers, checkpointing)
    data = sliced.batch(T, model.config.vocab_size)
    measured: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, sliced.environment(benchmark_cache=folder):
        for turn in range(rounds + 1):
            for name in names:
                gc.collect()
                start = time.process_time()
                steps = step(name, model, data)
                if turn:
                    measured[name].append((time.process_time() - start) / steps)
    return {
        name: {
            "seconds": statistics.median(times),
            "ratio": statistics.median(t / s for t, s in zip(times, measured["stock"])),
        }
        for name, times in measured.items()
    }


def shares(T: int, rounds: int, shape: str, layers: int, checkpointing: bool) -> dict[str, float]:
    """The share of each part in the CPU time of SelfAug's step, over ``rounds`` steps. A first step is not counted."""
    model = sliced.model(shape, layers, checkpointing)
    data = sliced.batch(T, model.config.vocab_size)
    back = start = 0.0
    with contextlib.ExitStack() as stack:
        watched = (decoder, "hidden_states"), (loss, "_through_weight"), (loss, "_chunk_terms")
        base, head, softmax = (stack.enter_context(_stopwatch(*place)) for place in watched)
        for turn in range(rounds + 1):
            if turn == 1:
                start, back, base[0], head[0], softmax[0] = time.process_time(), 0.0, 0.0, 0.0, 0.0
            total = sliced.VARIANTS["selfaug"](model, data)
            middle = time.process_time()
            total.backward()
            back += time.process_time() - middle
            model.zero_grad(set_to_none=True)
        whole = time.process_time() - start
    spent = {"reference pass": base[0], "products of the head": head[0] - softmax[0], "softmax, NLL and KL": softmax[0]}
    spent["backward of the layers"] = back
    spent["forward of the layers"] = whole - sum(spent.values())
    return {part: seconds / whole for part, seconds in spent.items()}


def chunk_speeds(T: int, sizes: list[int], rounds: int, shape: str) -> dict[int, dict[str, float]]:
    """FLOPs per CPU second of the loss alone, forward and backward, by chunk size: best and median of ``rounds``. The
    sizes take turns; a first round is not counted.
    """
    torch.manual_seed(0)
    H, V = (int(sliced.SHAPES[shape][name]) for name in ("hidden_size", "vocab_size"))
    head = nn.Linear(H, V, bias=False).requires_grad_(False)
    labels = sliced.batch(T, V)["labels"][0]
    hidden, states = torch.randn(T, H, requires_grad=True), torch.randn(int((labels == -100).sum()), H)
    weight = torch.ones(len(states))

    def run(size: int) -> None:
        loss.chunked_loss(hidden, states, labels, weight, head, head, size).total.backward()

    spent: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(rounds + 1):
        for size in sizes:
            start = time.process_time()
            run(size)
            if turn:
                spent[size].append(time.process_time() - start)
    with FlopCounterMode(display=False) as counter:  # the products are the same for every size
        run(sizes[0])
    flops = counter.get_total_flops()
    return {size: {"best": flops / min(t), "median": flops / statistics.median(t)} for size, t in spent.items()}


@contextlib.contextmanager
def _stopwatch(module: Any, name: str) -> Iterator[list[float]]:
    """CPU seconds spent in a function of ``module``, in a list of one."""
    spent, function = [0.0], getattr(module, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[0] += time.process_time() - start

    setattr(module, name, timed)
    try:
        yield spent
    finally:
        setattr(module, name, function)


def flops(T: int, names: list[str], shape: str, layers: int | None, checkpointing: bool) -> dict[str, float]:
    """Floating-point operations of a step's matrix products, also in attention, on the meta device: nothing is
    computed. Attention is counted as torch counts it: the whole (T, T) square, of which a causal kernel may leave out
    half.
    """
    model, data = _without_content(T, shape, layers, checkpointing, torch.float32)
    metrics.RUNNING.clear()  # sums of steps that were on another device
    loss._BLOCK = 2**40  # elementwise work has no products, so it may take whole chunks
    counted = {}
    for name in names:
        with Operators() as seen:
            steps = step(name, model, data)
        counted[name] = float(seen.flops) / steps
    return counted


def meta_peak(name: str, T: int, shape: str, layers: int | None, checkpointing: bool, dtype: torch.dtype) -> int:
    """The peak of the bytes in tensors, above the weights, on the meta device."""
    model, data = _without_content(T, shape, layers, checkpointing, dtype)
    gc.collect()
    with Operators() as seen:
        step(name, model, data)
    return int(seen.all.peak)


def _without_content(T: int, shape: str, *options: Any) -> tuple[Any, dict[str, Tensor]]:
    """A model and a batch without numbers. The labels have numbers, because they decide which positions take part."""
    from transformers.models.qwen2 import modeling_qwen2

    loss._BLOCK, loss.auto_chunk_size = loss._CPU_BLOCK, lambda V, _: _chunk_size(V, torch.device("cpu"))  # as a CPU
    # the model's own reads numbers, and finds that no mask is needed
    setattr(modeling_qwen2, "create_causal_mask", lambda *args, **kwargs: None)  # noqa: B010  # not exported, says mypy
    setattr(torch.nn.functional, "scaled_dot_product_attention", flash_attention)  # noqa: B010  # of another signature
    data = sliced.batch(T, sliced.SHAPES[shape]["vocab_size"])
    with torch.device("meta"):
        model = sliced.model(shape, *options)
    # without a mask, SelfAug looks for padding among the tokens, which have no numbers here
    mask = torch.ones_like(data["labels"])
    return model, {**data, "input_ids": data["input_ids"].to("meta"), "attention_mask": mask}


def real_peak(name: str, T: int, shape: str, layers: int, checkpointing: bool) -> dict[str, int]:
    """Peak bytes above the weights in a process of its own: those of tensors, by torch's profiler, and resident."""
    model = sliced.model(shape, layers, checkpointing)
    data = sliced.batch(T, model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder, sliced.environment(benchmark_cache=folder):
        step(name, model, sliced.batch(16, model.config.vocab_size))
        if name == "cached":
            step(name, model, data)
        gc.collect()
        _reset_high_water()
        before = _status("VmRSS")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            step(name, model, data)
        resident = _status("VmHWM") - before
    now = peak = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return {"tensors": peak, "resident": resident}


def _reset_high_water() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _status(field: str) -> int:
    with open(f"/proc/{os.getpid()}/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
