"""``selfaug/nll``, ``selfaug/kl`` and ``selfaug/alpha`` beside ``loss``, wherever the HF Trainer logs. The term of
SELFAUG_ALIGN is no KL: there, ``selfaug/mse`` takes the place of ``selfaug/kl``.

Sums stay on the device until the Trainer logs, so a step does not wait for the device. The logs show means over all
processes and over the steps of this run since the last log; the log of ``train_loss``, which ends a run, has those of
the steps that no other log has. Where no micro-batch had the term (SELFAUG_EVERY), there is no ``selfaug/kl``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .runs import PerRun


class Sums:
    """What one run has summed up in this process since the last log."""

    def __init__(self) -> None:
        self.logs: dict[str, float] = {}  # means over all processes, for the Trainer's next log
        self.measure = "KL"  # what the term of the last step is called
        self.clear()

    def clear(self) -> None:
        """Start again at 0."""
        self.sums: Tensor | None = None  # (2,) NLL and KL, nats; or NLL and MSE
        self.supervised = self.aligned = self.looked = 0
        self.alpha: float | None = None

    def add(
        self,
        nll_sum: Tensor,
        supervised: int,
        kl_sum: Tensor,
        aligned: int | None,
        alpha: float,
        measure: str = "KL",
    ) -> None:
        """Add one micro-batch: sums in nats over ``supervised`` and over ``aligned`` tokens; None without the term.
        ``measure``: what ``kl_sum`` is, "KL" or "MSE"; a sum of the one does not go on as a sum of the other.
        """
        if measure != self.measure:
            self.clear()
            self.measure = measure
        sums = torch.stack((nll_sum.detach().to(kl_sum.device), kl_sum))  # a model may be spread over devices
        self.sums = sums if self.sums is None else self.sums.to(sums.device) + sums
        self.supervised += supervised
        self.aligned += aligned or 0
        self.looked += aligned is not None
        self.alpha = alpha

    def totals(self, device: torch.device) -> Tensor:
        """(5,) float32: NLL, KL, supervised tokens, aligned tokens, micro-batches with the term."""
        sums = torch.zeros(2) if self.sums is None else self.sums
        counts = torch.tensor((self.supervised, self.aligned, self.looked), dtype=torch.float32, device=device)
        return torch.cat((sums.to(counts), counts))

    def gather(self, device: torch.device, alpha: float, measure: str = "KL") -> None:
        """Put the means over all processes into ``logs``. Where no process has added anything, ``logs`` stays as it is.

        Every process has to call this at the same step, also one that has added nothing: ``alpha`` and ``measure`` are
        for its logs.
        """
        measure = measure if self.sums is None else self.measure
        totals = _over_processes(self.totals(device))
        self.logs = _means(totals, alpha if self.alpha is None else self.alpha, measure) or self.logs
        self.clear()


class Running(PerRun[Sums]):
    """The sums of every run of this process."""

    def take(self) -> dict[str, float]:
        """Means over all runs and processes since the last call; every process has to call this. Empty if no step of
        this process had the term since then. ``RUNNING.of(model)`` has the sums of one model alone.
        """
        active = [(sums, sums.sums.device) for sums in self.all() if sums.sums is not None]
        if not active:
            return {}
        last, device = active[-1]
        totals = _over_processes(torch.stack([sums.totals(device) for sums, _ in active]).sum(0))
        logs = _means(totals, last.alpha, last.measure)
        self.clear()
        return logs


def _over_processes(totals: Tensor) -> Tensor:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(totals)
    return totals


def _means(totals: Tensor, alpha: float | None, measure: str) -> dict[str, float]:
    nll, kl, supervised, aligned, looked = totals.tolist()
    if alpha is None or supervised + aligned == 0:
        return {}
    means = {"selfaug/nll": nll / max(supervised, 1)}
    if looked:
        means[f"selfaug/{measure.lower()}"] = kl / max(aligned, 1)
    return {**{name: float(f"{mean:.7g}") for name, mean in means.items()}, "selfaug/alpha": alpha}


RUNNING = Running(Sums)
