"""`gpu`: what training costs on the GPU that is here. Whole models with random weights, every variant in turn, within a
budget of minutes: what has no time left is left out, and what has no memory left is noted, and the run goes on.

A turn of a variant is one micro-batch that is not counted and four that are; of a variant that acts at one of four, it
is four and four, so that it acts once in either. The gradients of the four are added up and dropped; there is no
optimizer step.
"""

from __future__ import annotations

import datetime
import functools
import statistics
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor

from selfaug import __version__ as selfaug_release

from . import loss_alone
from . import slice as sliced
from .budget import Budget
from .device import Device, attempt

MICRO_BATCHES = 4
FUSED = ("fused TRL", "fused Liger", "stock fused")  # the first that was measured is "fused stock"
WATCHED = ("selfaug", "fused TRL")
MARGIN = 1.5  # by which a step may take longer than is expected of its length
Cell = dict[str, Any]


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

    @property
    def middle(self) -> int:
        """The length at which the loss alone is measured."""
        return self.lengths[len(self.lengths) // 2]


def run(plan: Plan, device: Device, budget: Budget) -> dict[str, Any]:
    """The results: ``steps`` by shape, length and variant; ``loss alone`` by shape; ``watched`` by shape and length.

    A cell of ``steps`` has figures; or ``left_out``, ``out_of_memory`` or ``failed`` with the reason in words. The
    steps come first, in most of the time. Kernels are counted after all times are measured, see
    :meth:`.device.Device.kernels`.
    """
    results: dict[str, Any] = {"steps": {}, "loss alone": {}, "watched": {}}
    # what takes longer gets more of the time, but not in proportion
    weights = [_cost(shape, T) ** 0.5 for shape in plan.shapes for T in plan.lengths]
    for shape in plan.shapes:
        model, problem = _made(plan, shape, device, budget)
        per_cost = 0.0  # of the slowest step at the length before, in seconds
        for T in plan.lengths:
            case = _Case(plan, device, budget, model, T, MARGIN * per_cost * _cost(shape, T))
            plan.say(f"{shape} T={T}, {budget.left():.0f} s left:")
            measured = case.run(problem, budget.left() * weights[0] / sum(weights))
            weights = weights[1:]
            for name, cell in measured.items():
                plan.say(f"  {name:20} {in_words(cell)}")
            results["steps"].setdefault(shape, {})[str(T)] = measured
            results["watched"].setdefault(shape, {})[str(T)] = case.watch()
            plan.save(results)
            per_cost = case.slowest() / _cost(shape, T)
        del model, case  # before the next one is built
        device.collect()
    budget.reserve = 0.0
    share = budget.left() / (2 * len(plan.shapes))
    for shape in plan.shapes:
        sizes = loss_alone.by_size(shape, plan.middle, plan.dtype, device, budget, share)
        results["loss alone"][shape] = sizes
    for shape in plan.shapes:
        _count_kernels(plan, shape, device, budget, results)
        plan.save(results)
    return results


def _cost(shape: str, T: int) -> float:
    """What a step costs, in a unit of its own: the products of layers and head, and attention under a causal mask."""
    sizes = sliced.SHAPES[shape]
    H, layers = sizes["hidden_size"], sizes["num_hidden_layers"]
    per_token = layers * H * (3 * sizes["intermediate_size"] + 2 * H) + H * sizes["vocab_size"]
    return float(T * (per_token + layers * H * T))


def _made(plan: Plan, shape: str, device: Device, budget: Budget) -> tuple[Any, Cell]:
    """(the model, nothing), or (None, why there is none)."""
    reason = budget.refusal(0)
    return (None, {"left_out": reason}) if reason else attempt(_build, plan, shape, device)


def _count_kernels(plan: Plan, shape: str, device: Device, budget: Budget, results: dict[str, Any]) -> None:
    """Adds the kernels of the loss alone, and of the steps that were watched."""
    loss_alone.count_kernels(results["loss alone"][shape], shape, plan.middle, plan.dtype, device, budget)
    watched = results["watched"][shape]
    if not any(watched.values()):
        return
    model, _ = _made(plan, shape, device, budget)
    for T in plan.lengths if model is not None else []:
        case = _Case(plan, device, budget, model, T, 0.0)
        for name, found in watched[str(T)].items():
            found.update(case.recorded(device.kernels, name, found["seconds"]))


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
    """The problems of this kind, one line each, with where they were met."""
    where: dict[str, list[str]] = {}
    for part, what in (("steps", ""), ("watched", " watched")):
        for shape, lengths in results[part].items():
            for T, cells in lengths.items():
                for name, cell in cells.items():
                    if kind in cell:
                        where.setdefault(f"{name}{what}: {cell[kind]}", []).append(f"{shape} T={T}")
    for shape, rows in results["loss alone"].items():
        for row in rows:
            if kind in row:
                where.setdefault(f"the loss alone: {row[kind]}", []).append(shape)
    return [f"{problem} ({', '.join(dict.fromkeys(places))})" for problem, places in where.items()]


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
        self.seen: list[Tensor] = []  # the losses of some steps, still on their device: to read one would be a wait

    @functools.cached_property
    def data(self) -> dict[str, Tensor]:
        """The batch, on the device."""
        batch = sliced.batch(self.T, self.model.config.vocab_size)
        return {name: tensor.to(self.device.torch) for name, tensor in batch.items()}

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
        for turn in range(self.plan.rounds):
            names = [name for name in self.plan.variants if name not in self.problems]
            expected = sum((sliced.STEPS.get(n, 1) + MICRO_BATCHES) * self.known.get(n, 0.0) for n in names)
            until = min(self.budget.left(), share - (self.budget.clock() - self.start))
            if turn and expected > until:
                break
            for name in names:
                reason, problem = attempt(self._turn, name)
                self.model.zero_grad(set_to_none=True)
                if reason or problem:
                    self.problems[name] = problem or {"left_out": reason}
                    self.device.collect()
        return {name: self._cell(name) for name in self.plan.variants}

    def _turn(self, name: str) -> str:
        """Steps that are not counted, which take from the device what the others take again; then those that are.
        Returns why there is no time for it; empty if there was.
        """
        self.device.empty()
        for counted, count in ((False, sliced.STEPS.get(name, 1)), (True, MICRO_BATCHES)):
            reason = self.budget.refusal(count * self.known.get(name, self.guess))
            if reason:
                return reason
            before = self.device.restart_peak()
            seconds = self.device.seconds(functools.partial(self._steps, name, count))
            self.model.zero_grad(set_to_none=True)
            self.known[name], self.losses[name] = seconds / count, float(torch.stack(self.seen).mean())
            self.guess = max(self.guess, self.known[name])
            if counted:
                self.times[name].append(seconds)
                peak = self.device.peak()
                if peak is not None and before is not None:
                    self.peaks[name] = max(self.peaks.get(name, (0, 0)), (peak, before))
        return ""

    def _steps(self, name: str, count: int) -> None:
        self.seen = []
        for _ in range(count):
            total = sliced.VARIANTS[name](self.model, self.data)
            total.backward()
            self.seen.append(total.detach())
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
        return max(self.known.values(), default=self.guess / MARGIN)

    def watch(self) -> dict[str, Any]:
        """Where steps of :data:`WATCHED` wait for the GPU, and how long they take without anybody watching."""
        return {
            name: {"seconds": self.known[name], **self.recorded(self.device.waits, name, self.known[name])}
            for name in WATCHED
            if self.times.get(name)
        }

    def recorded(self, record: Callable[[Callable[[], object]], Cell], name: str, seconds: float) -> Cell:
        """What ``record`` finds in a step that takes so many ``seconds``, if there is time for it."""
        if self.budget.refusal(2 * seconds):
            return {}
        self.device.empty()
        found, problem = attempt(record, functools.partial(self._steps, name, 1))
        self.model.zero_grad(set_to_none=True)
        return found or problem


def _build(plan: Plan, shape: str, device: Device) -> Any:
    """The model, made on its device in its dtype: float32 copies of 7B on a CPU would take 28 GB and minutes."""
    with device.torch:
        return sliced.model(shape, plan.layers, True, plan.dtype)
