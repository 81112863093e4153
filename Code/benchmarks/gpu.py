"""`gpu`: what training costs on the GPU that is here. Whole models with random weights, every variant in turn, within a
budget of minutes: what has no time left is left out, and what has no memory left is noted, and the run goes on.

A turn of a variant is one micro-batch that is not counted and four that are, so that a variant that acts at every
fourth micro-batch is measured as it trains. The gradients of the four are added up and dropped; there is no optimizer
step.
"""

from __future__ import annotations

import datetime
import functools
import itertools
import statistics
import time
from dataclasses import dataclass
from typing import Any, Callable, TypeVar

import torch
from torch import Tensor, nn

from selfaug import __version__ as selfaug_release
from selfaug import loss
from selfaug.toolkit.errors import first_line

from . import slice as sliced
from .device import Device, is_out_of_memory

MICRO_BATCHES = 4
FUSED = ("fused TRL", "fused Liger", "stock fused")  # the first that was measured is "fused stock"
WATCHED = ("selfaug", "fused TRL")
BLOCKS = (16, 64, 256)  # MiB, see loss._BLOCK
CHUNKS = (1, 2, 4)  # times loss.auto_chunk_size
Cell = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Plan:
    """What is measured, in this order: each of ``shapes`` at each of ``lengths``, all ``variants`` in turn, ``rounds``
    times where the time allows it. ``say`` is told each figure, and ``save`` gets all results after each length.
    """

    shapes: list[str]
    layers: int | None
    lengths: list[int]
    variants: list[str]
    rounds: int
    dtype: torch.dtype
    say: Callable[[str], object]
    save: Callable[[dict[str, Any]], object]


class Budget:
    """The time that the run may take.

    Args:
        seconds: from ``start`` on.
        clock: seconds from any start.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic, start: float | None = None) -> None:
        self.seconds, self.clock = seconds, clock
        self.end = (clock() if start is None else start) + seconds

    def left(self) -> float:
        """Seconds; below 0 when the time is over."""
        return self.end - self.clock()

    def refusal(self, expected: float) -> str:
        """Why work that takes ``expected`` seconds is not started; empty if there is time for it."""
        left, whole = self.left(), f"of the budget of {self.seconds / 60:g} minutes"
        if left <= 0:
            return f"nothing was left {whole}"
        return f"needs about {expected:.0f} s, and {left:.0f} s were left {whole}" if expected > left else ""


def run(plan: Plan, device: Device, budget: Budget) -> dict[str, Any]:
    """The results: ``steps`` by shape, length and variant; ``loss alone`` by shape; ``watched`` by shape and length.

    A cell of ``steps`` has figures; or ``left_out``, ``out_of_memory`` or ``failed`` with the reason in words.
    """
    results: dict[str, Any] = {"steps": {}, "loss alone": {}, "watched": {}}
    cases = len(plan.shapes) * len(plan.lengths)
    for shape in plan.shapes:
        results["loss alone"][shape] = _loss_alone(plan, shape, device, budget)
        reason = budget.refusal(0)
        model, problem = (None, {"left_out": reason}) if reason else _attempt(_build, plan, shape, device)
        device.empty()
        guess = 0.0
        for T in plan.lengths:
            case = _Case(plan, device, budget, model, T, guess)
            measured = case.run(problem, budget.left() / cases)
            cases -= 1
            for name, cell in measured.items():
                plan.say(f"{shape} T={T} {name:20} {in_words(cell)}")
            results["steps"].setdefault(shape, {})[str(T)] = measured
            results["watched"].setdefault(shape, {})[str(T)] = case.watch()
            plan.save(results)
            longer = [other for other in plan.lengths if other > T]
            guess = case.slowest() * (min(longer, default=T) / T) ** 2  # attention grows with the square, the rest less
        del model, case  # before the next one is built
        device.empty()
    return results


def in_words(cell: Cell) -> str:
    """A cell as one line."""
    for problem in ("left_out", "out_of_memory", "failed"):
        if problem in cell:
            return f"{problem.replace('_', ' ')}: {cell[problem]}"
    ratios = [
        f"{cell[ratio]:.3f} of {what}" for ratio, what in (("ratio", "stock"), ("fused_ratio", "fused stock"))
        if cell[ratio] is not None
    ]  # fmt: skip
    peak = "" if cell["peak"] is None else f", peak {cell['peak'] / 1e9:.2f} GB"
    return f"{cell['tokens_per_second']:9.0f} tokens/s, time {', '.join(ratios) or 'of nothing else'}{peak}"


def problems(results: dict[str, Any], kind: str) -> list[str]:
    """The problems of this kind, one line each, with the cells that have it."""
    where: dict[str, list[str]] = {}
    for shape, lengths in results["steps"].items():
        for T, cells in lengths.items():
            for name, cell in cells.items():
                if kind in cell:
                    where.setdefault(f"{name}: {cell[kind]}", []).append(f"{shape} T={T}")
    return [f"{problem} ({', '.join(cells)})" for problem, cells in where.items()]


def facts(plan: Plan, device: Device, budget: Budget) -> dict[str, Any]:
    """What the results depend on."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **device.facts(),
        "selfaug": selfaug_release,
        "shapes": plan.shapes,
        "lengths": plan.lengths,
        "variants": plan.variants,
        **({"layers": plan.layers} if plan.layers else {}),
        "dtype": str(plan.dtype).partition(".")[2],
        "checkpointing": True,
        "prompt": sliced.PROMPT,
        "lora": f"r=8 on {', '.join(sliced.LINEAR_LAYERS)}",
        "micro_batches": MICRO_BATCHES,
        "at_most_rounds": plan.rounds,
        "minutes": budget.seconds / 60,
    }


class _Case:
    """All variants at one length of one model.

    Args:
        guess: about how many seconds a step takes, at most; 0 if nobody knows.
    """

    def __init__(self, plan: Plan, device: Device, budget: Budget, model: Any, T: int, guess: float) -> None:
        self.plan, self.device, self.budget, self.model, self.T, self.guess = plan, device, budget, model, T, guess
        self.start = budget.clock()
        self.known: dict[str, float] = {}  # seconds of a step
        self.times: dict[str, list[float]] = {name: [] for name in plan.variants}
        self.problems: dict[str, Cell] = {}
        self.peaks: dict[str, tuple[int, int]] = {}  # bytes in tensors at the most, and before the turn
        self.losses: dict[str, float] = {}
        self.last = torch.zeros(())  # the last loss, still on its device: to read it would be a wait
        self.data: dict[str, Tensor] = {}

    def run(self, problem: Cell, share: float) -> dict[str, Cell]:
        """The cells, by variant.

        Args:
            problem: why there is no model; empty if there is one.
            share: of the budget, in seconds. Further rounds than the first have to end within it.
        """
        for name in self.plan.variants:
            lacks = sliced.missing(name, self.device.torch)
            if problem or lacks:
                self.problems[name] = {"left_out": lacks} if lacks else problem
        if not problem:
            data = sliced.batch(self.T, self.model.config.vocab_size)
            self.data = {name: tensor.to(self.device.torch) for name, tensor in data.items()}
        for turn in range(self.plan.rounds):
            names = [name for name in self.plan.variants if name not in self.problems]
            expected = (1 + MICRO_BATCHES) * sum(self.known.get(name, 0.0) for name in names)
            until = min(self.budget.left(), share - (self.budget.clock() - self.start))
            if turn and expected > until:
                break
            for name in names:
                self._turn(name)
        return {name: self._cell(name) for name in self.plan.variants}

    def _turn(self, name: str) -> None:
        """A micro-batch that is not counted, which takes from the device what the others take again; then four."""
        seconds = 0.0
        before: int | None = None
        for count in (1, MICRO_BATCHES):
            reason = self.budget.refusal(count * self.known.get(name, self.guess))
            if reason:
                self.problems[name] = {"left_out": reason}
                return
            if count == 1:
                self.device.empty()
            before = self.device.restart_peak()
            took, problem = _attempt(self.device.seconds, functools.partial(self._steps, name, count))
            self.model.zero_grad(set_to_none=True)
            if took is None:
                self.problems[name] = problem
                return
            seconds = took
            self.known[name], self.losses[name] = seconds / count, float(self.last)
            self.guess = max(self.guess, self.known[name])
        self.times[name].append(seconds)
        peak = self.device.peak()
        if peak is not None and before is not None:
            self.peaks[name] = max(self.peaks.get(name, (0, 0)), (peak, before))

    def _steps(self, name: str, count: int) -> None:
        for _ in range(count):
            total = sliced.VARIANTS[name](self.model, self.data)
            total.backward()
            self.last = total.detach()
            del total  # before the next forward

    def _cell(self, name: str) -> Cell:
        times = self.times[name]
        if not times:
            return self.problems[name]
        fused = next((other for other in FUSED if self.times.get(other)), "")
        peak, before = self.peaks.get(name, (None, None))
        return {
            "tokens_per_second": MICRO_BATCHES * self.T / statistics.median(times),
            "seconds": statistics.median(times) / MICRO_BATCHES,
            "rounds": len(times),
            "ratio": self._ratio(name, "stock"),
            "fused_ratio": self._ratio(name, fused),
            "fused": fused or None,
            "peak": peak,
            "before": before,
            "peak_ratio": peak / self.peaks["stock"][0] if peak is not None and "stock" in self.peaks else None,
            "loss": self.losses[name],
        }

    def _ratio(self, name: str, other: str) -> float | None:
        """The median, over the rounds that both have, of the ratio of their times within a round."""
        ratios = [t / s for t, s in zip(self.times[name], self.times.get(other, []))]
        return statistics.median(ratios) if ratios else None

    def slowest(self) -> float:
        """Seconds of the slowest variant's step; what was guessed if none is known."""
        return max(self.known.values(), default=self.guess)

    def watch(self) -> dict[str, Any]:
        """What steps of :data:`WATCHED` make the GPU do and wait for, where there is time for them."""
        watched = {}
        for name in WATCHED:
            if self.times.get(name) and not self.budget.refusal(4 * self.known[name]):  # two steps that are recorded
                self.device.empty()
                found, problem = _attempt(self.device.watched, functools.partial(self._steps, name, 1))
                self.model.zero_grad(set_to_none=True)
                watched[name] = {**(found or problem), "seconds": self.known[name]}
        return watched


def _build(plan: Plan, shape: str, device: Device) -> Any:
    """The model, made on its device in its dtype: float32 copies of 7B on a CPU would take 28 GB and minutes."""
    with device.torch:
        return sliced.model(shape, plan.layers, True, plan.dtype)


def _loss_alone(plan: Plan, shape: str, device: Device, budget: Budget) -> list[Cell]:
    """The loss alone, forward and backward, by block and chunk: seconds, and bytes at the most. The first row has the
    default sizes, and what the GPU runs and waits for there.
    """
    H, V = (int(sliced.SHAPES[shape][name]) for name in ("hidden_size", "vocab_size"))
    T, size = plan.lengths[len(plan.lengths) // 2], loss.auto_chunk_size(V, device.torch)
    inputs, problem = _attempt(_loss_inputs, T, H, V, plan.dtype, device)
    if inputs is None:
        return [problem]
    name = "_BLOCK" if device.is_gpu else "_CPU_BLOCK"
    default: int = getattr(loss, name)
    rows: list[Cell] = []
    try:
        for block, times in dict.fromkeys([(default >> 20, 1), *itertools.product(BLOCKS, CHUNKS)]):
            if budget.refusal(0):
                break
            setattr(loss, name, block << 20)
            device.empty()
            before = device.restart_peak()
            work = functools.partial(_loss_step, inputs, times * size)
            seconds, problem = _attempt(_median_seconds, device, work)
            peak = device.peak()
            row: Cell = {"T": T, "block_mib": block, "chunk": times * size, "seconds": seconds, **problem}
            row["above"] = peak - before if peak is not None and before is not None else None
            if not rows:
                found, problem = _attempt(device.watched, work)
                row |= {**(found or problem), "chunks": -(-int(sliced.PROMPT * T) // size)}
            rows.append(row)
    finally:
        setattr(loss, name, default)
    return rows


def _loss_inputs(T: int, H: int, V: int, dtype: torch.dtype, device: Device) -> tuple[Any, ...]:
    """Hidden states, the reference's, next labels, weights and head of a loss at the sizes of a model."""
    torch.manual_seed(0)
    with device.torch:
        head = nn.Linear(H, V, bias=False, dtype=dtype).requires_grad_(False)
        hidden = torch.randn(T, H, dtype=dtype, requires_grad=True)
        states = torch.randn(int(sliced.PROMPT * T), H, dtype=dtype)
    labels = sliced.batch(T, V)["labels"][0].to(device.torch)
    return hidden, states, labels, torch.ones(len(states), device=device.torch), head


def _loss_step(inputs: tuple[Any, ...], size: int) -> None:
    hidden, states, labels, weight, head = inputs
    loss.chunked_loss(hidden, states, labels, weight, head, head, size).total.backward()
    hidden.grad = None


def _median_seconds(device: Device, work: Callable[[], object]) -> float:
    work()
    return statistics.median(device.seconds(work) for _ in range(3))


def _attempt(function: Callable[..., Result], *args: Any) -> tuple[Result | None, Cell]:
    """(what ``function`` returns, nothing), or (None, why it failed). Tensors of the failed call are free again: its
    frames are forgotten with the error.
    """
    try:
        return function(*args), {}
    except Exception as error:
        return None, {"out_of_memory" if is_out_of_memory(error) else "failed": first_line(error)}
