"""``selfaug/nll``, ``selfaug/kl`` and ``selfaug/alpha`` beside ``loss``, wherever the HF Trainer logs.

Sums stay on the device until the Trainer logs, so a step costs no host synchronisation. They are averaged over the
steps of this run since the last log and over all processes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .runs import PerRun


class Sums:
    """Running sums of one run since the last log, of one process."""

    def __init__(self) -> None:
        self.logs: dict[str, float] = {}  # means over all processes, which the Trainer's next log takes along
        self.clear()

    def clear(self) -> None:
        """Start again."""
        self.sums: Tensor | None = None  # (2,) NLL and KL, nats
        self.supervised = self.aligned = 0
        self.alpha: float | None = None

    def add(self, nll_sum: Tensor, supervised: int, kl_sum: Tensor, aligned: int, alpha: float) -> None:
        """One micro-batch: sums in nats over ``supervised`` and ``aligned`` tokens."""
        sums = torch.stack((nll_sum.detach().to(kl_sum.device), kl_sum))  # of a model spread over devices
        self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums
        self.supervised += supervised
        self.aligned += aligned
        self.alpha = alpha

    def totals(self, device: torch.device) -> Tensor:
        """(4,) float32: NLL, KL, supervised, aligned."""
        sums = torch.zeros(2) if self.sums is None else self.sums
        counts = torch.tensor((self.supervised, self.aligned), dtype=torch.float32, device=device)
        return torch.cat((sums.to(counts), counts))

    def gather(self, device: torch.device, alpha: float) -> None:
        """Put the means over all processes into ``logs``. Every process has to call this at the same step, whether or
        not it has anything to add; ``alpha`` is for one that has not.
        """
        totals = _over_processes(self.totals(device))
        self.logs = _means(totals, alpha if self.alpha is None else self.alpha)
        self.clear()


class Running(PerRun[Sums]):
    """The sums of every run of this process."""

    def take(self) -> dict[str, float]:
        """Means since the last call over all runs and processes (each must call); empty if no step of this process
        went through SelfAug since. One model's alone: ``RUNNING.of(model)``.
        """
        active = [sums for sums in self.all() if sums.sums is not None]
        if not active:
            return {}
        device = active[-1].sums.device  # type: ignore[union-attr]
        totals = _over_processes(torch.stack([sums.totals(device) for sums in active]).sum(0))
        logs = _means(totals, active[-1].alpha)
        self.clear()
        return logs


def _over_processes(totals: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
    return totals


def _means(totals: Tensor, alpha: float | None) -> dict[str, float]:
    nll, kl, supervised, aligned = totals.tolist()
    if alpha is None or supervised + aligned == 0:
        return {}
    means = {"selfaug/nll": nll / max(supervised, 1), "selfaug/kl": kl / max(aligned, 1)}
    return {**{name: float(f"{mean:.7g}") for name, mean in means.items()}, "selfaug/alpha": alpha}


RUNNING = Running(Sums)
