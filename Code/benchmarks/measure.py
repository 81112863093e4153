"""Time, interleaved in one process; floating-point operations; and the peak of the tensors alive, from torch's profiler
or, with nothing allocated, from a run on fake tensors.
"""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
import weakref
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from . import slice as sliced


def step(name: str, model: Any, data: dict[str, Tensor]) -> None:
    """Forward and backward; the gradients are dropped."""
    sliced.VARIANTS[name](model, data).backward()
    model.zero_grad(set_to_none=True)


def seconds(T: int, names: list[str], rounds: int, shape: str, layers: int, checkpointing: bool) -> dict[str, Any]:
    """CPU seconds of each variant's step, ``rounds`` times in turn after a first that is not counted, and the median
    over rounds of its ratio to stock's step in the same round."""
    model = sliced.model(shape, layers, checkpointing)
    data = sliced.batch(T, model.config.vocab_size)
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, sliced.environment(benchmark_cache=folder):
        for turn in range(rounds + 1):
            for name in names:
                gc.collect()
                start = time.process_time()
                step(name, model, data)
                if turn:
                    found[name].append(time.process_time() - start)
    return {
        name: {
            "seconds": statistics.median(times),
            "ratio": statistics.median(t / s for t, s in zip(times, found["stock"])),
        }
        for name, times in found.items()
    }


def flops(T: int, names: list[str], shape: str, layers: int | None, checkpointing: bool) -> dict[str, float]:
    """Floating-point operations of a step's matrix products, by fake tensors: nothing is computed."""
    found = {}
    for name in names:
        with FakeTensorMode(allow_non_fake_inputs=True):
            model, data = sliced.model(shape, layers, checkpointing), _data(T, shape)
            with FlopCounterMode(display=False) as counter:
                step(name, model, data)
        found[name] = float(counter.get_total_flops())
    return found


def fake_peak(name: str, T: int, shape: str, layers: int | None, checkpointing: bool, dtype: torch.dtype) -> int:
    """Bytes alive at once above the weights, by a run on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, data = sliced.model(shape, layers, checkpointing, dtype), _data(T, shape)
        gc.collect()
        with _Alive() as alive:
            step(name, model, data)
    return alive.peak


def _data(T: int, shape: str) -> dict[str, Tensor]:
    """Real tensors, since masks are read; a decoder on fake tensors takes them as they are."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():
        return sliced.batch(T, sliced.SHAPES[shape]["vocab_size"])


class _Alive(TorchDispatchMode):
    """Follows the storages that operators make, and how many bytes of them live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self.seen:
                self._add(storage)
        return out

    def _add(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen[key] = weakref.ref(storage, lambda _: self._drop(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        self.seen.pop(key, None)
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def real_peak(name: str, T: int, shape: str, layers: int, checkpointing: bool) -> dict[str, int]:
    """Bytes above the weights in a process of its own: tensors by torch's profiler, and the resident set."""
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
