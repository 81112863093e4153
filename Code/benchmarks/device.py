"""The device that `gpu` measures on: its clock, its memory, what it is, and what one step makes it do and wait for. On
a CPU there is a clock alone.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Callable, TypeVar

import torch
from torch._C._autograd import DeviceType

from selfaug.toolkit.errors import Refusal, first_line

PACKAGES = ("torch", "transformers", "peft", "trl", "liger_kernel", "triton", "accelerate")
Result = TypeVar("Result")


class Device:
    """A CUDA device (ROCm's have the same name), or the CPU.

    Args:
        name: ``cuda``, ``cuda:1``, ``cpu``.

    Raises:
        Refusal: torch sees no such device.
    """

    def __init__(self, name: str) -> None:
        expected = "cuda, cuda:N or cpu"
        try:
            self.torch = torch.device(name)
        except RuntimeError as error:
            raise Refusal("no-device", f"--device {name} is no device", expected, first_line(error)) from None
        self.is_gpu = self.torch.type == "cuda"
        if not self.is_gpu and self.torch.type != "cpu":
            raise Refusal("no-device", f"--device {name} cannot be measured on", expected, self.torch.type)
        count = torch.cuda.device_count() if self.is_gpu and torch.cuda.is_available() else 0
        if self.is_gpu and (self.torch.index or 0) >= count:
            found = f"{count} CUDA devices" if count else "no CUDA device"
            raise Refusal(
                "no-device",
                f"--device {name} is not there, and nothing was measured",
                "a GPU that torch can use (torch.cuda.is_available())",
                f"torch {torch.__version__}, which sees {found}",
                "run this on a machine with a GPU and a torch built for it; to try the command on this CPU, with tiny "
                "shapes: python Code/benchmarks gpu --device cpu --tiny",
            )
        if self.is_gpu:
            torch.cuda.set_device(self.torch.index or 0)  # other libraries' kernels start on the current one

    def synchronize(self) -> None:
        """Wait until the device has done all that it was told."""
        if self.is_gpu:
            torch.cuda.synchronize(self.torch)

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time of ``work``, from an idle device to an idle device."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def empty(self) -> None:
        """Free what torch's cache holds for nobody, so that one variant's blocks are not in another's way."""
        if self.is_gpu:
            with contextlib.suppress(RuntimeError):  # after an error that ends CUDA in this process; it was noted
                torch.cuda.empty_cache()

    def collect(self) -> None:
        """:meth:`empty`, and before it what is in cycles: a model, the frames of an error."""
        gc.collect()
        self.empty()

    def restart_peak(self) -> int | None:
        """Forget the peak. Returns the bytes in tensors now; None on a CPU, which does not count them."""
        if not self.is_gpu:
            return None
        torch.cuda.reset_peak_memory_stats(self.torch)
        return torch.cuda.memory_allocated(self.torch)

    def peak(self) -> int | None:
        """The most bytes in tensors since :meth:`restart_peak`; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.torch) if self.is_gpu else None

    def facts(self) -> dict[str, Any]:
        """What the device is, its driver, and the releases of the packages that take part."""
        facts: dict[str, Any] = {"device": self.torch.type, "machine": processor()}
        if self.is_gpu:
            card = torch.cuda.get_device_properties(self.torch)
            facts["machine"] = card.name
            facts |= {"memory": card.total_memory, "processors": card.multi_processor_count}
            facts |= {"capability": f"{card.major}.{card.minor}", "driver": _driver(), "cuda": torch.version.cuda}
            facts |= {"hip": torch.version.hip, "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF")}
        facts["python"] = platform.python_version()
        return facts | {package: _version(package) for package in PACKAGES}

    def waits(self, step: Callable[[], object]) -> dict[str, Any]:
        """How often the CPU waits for the GPU in ``step``, and in which lines; nothing on a CPU. torch's debug mode
        finds most waits, not all: see ``torch.cuda.set_sync_debug_mode``.
        """
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self._warn_of_waits("warn")
            try:
                step()
            finally:
                self._warn_of_waits("default")
        return waits(caught) if self.is_gpu else {}

    def _warn_of_waits(self, mode: str) -> None:
        if self.is_gpu:
            torch.cuda.set_sync_debug_mode(mode)

    def kernels(self, step: Callable[[], object]) -> dict[str, Any]:
        """How many kernels and copies the GPU runs in ``step``, for how long, and the longest; nothing on a CPU. Not
        between measurements of time: what the profiler hooks into the driver may stay there.
        """
        if not self.is_gpu:
            step()
            return {}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            self.synchronize()
        return kernels(profile.events() or ())


def waits(caught: Iterable[warnings.WarningMessage]) -> dict[str, Any]:
    """From the warnings of one step in sync debug mode: how often the CPU waited, and how often in which line."""
    at = [f"{_short(w.filename)}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]
    return {"waits": len(at), "waits_at": dict(collections.Counter(at).most_common())}


def kernels(events: Iterable[Any]) -> dict[str, Any]:
    """From the profiler's events of one step: kernels and copies on the GPU, seconds, and the eight longest by name.
    ``kernels`` is None if the profiler saw none: without CUPTI, or without the right to count.
    """
    spent: dict[str, float] = collections.defaultdict(float)
    count = copies = 0
    for event in events:
        if event.device_type != DeviceType.CUDA or getattr(event, "is_user_annotation", False):
            continue
        if event.name.startswith(("Memcpy", "Memset")):
            copies += 1
        else:
            count += 1
        spent[event.name[:100]] += event.time_range.elapsed_us() / 1e6
    if not spent:
        return {"kernels": None}
    longest = sorted(spent.items(), key=lambda item: -item[1])[:8]
    return {"kernels": count, "copies": copies, "gpu_seconds": sum(spent.values()), "longest": dict(longest)}


def attempt(function: Callable[..., Result], *args: Any) -> tuple[Result | None, dict[str, Any]]:
    """(what ``function`` returns, nothing), or (None, why it failed). Tensors of the failed call are free again: its
    frames are forgotten with the error.
    """
    try:
        return function(*args), {}
    except Exception as error:
        return None, {"out_of_memory" if is_out_of_memory(error) else "failed": first_line(error)}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had too little memory: torch's own error, or one of CUDA's or of its libraries."""
    text = str(error).lower()
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, RuntimeError) and ("out of memory" in text or "alloc_failed" in text))


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:]).replace("//", "/")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    words = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [""])[0].strip() or None


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
