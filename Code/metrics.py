"""``selfaug/nll``, ``selfaug/kl`` and ``selfaug/alpha`` beside ``loss``, wherever the HF Trainer logs.

Sums stay on the device until the Trainer logs, so a step costs no host synchronisation. They are averaged over the
steps since the last log and over all processes.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor


class Metrics:
    """Running sums since the last log, of one process."""

    def __init__(self) -> None:
        self.trainer: weakref.ref[Any] | None = None
        self.clear()

    def clear(self) -> None:
        self.sums: Tensor | None = None  # (2,) NLL and KL, nats
        self.supervised = self.aligned = 0
        self.alpha: float | None = None

    def belong_to(self, trainer: Any) -> None:
        """Steps of another trainer, which ended before it logged them, are not this one's."""
        if self.trainer is None or self.trainer() is not trainer:
            self.clear()
            self.trainer = weakref.ref(trainer)

    def add(self, nll_sum: Tensor, supervised: int, kl_sum: Tensor, aligned: int, alpha: float) -> None:
        """One micro-batch: sums in nats over ``supervised`` and ``aligned`` tokens."""
        sums = torch.stack((nll_sum, kl_sum)).detach()
        self.sums = sums if self.sums is None else self.sums + sums
        self.supervised += supervised
        self.aligned += aligned
        self.alpha = alpha

    def take(self) -> dict[str, float]:
        """Means since the last call, over all processes (each must call); empty if no step went through SelfAug
        since.
        """
        if self.sums is None or self.alpha is None:
            return {}
        counts = self.sums.new_tensor((self.supervised, self.aligned), dtype=torch.float32)
        totals = torch.cat((self.sums.to(counts), counts))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
        nll, kl, supervised, aligned = totals.tolist()
        means = {"selfaug/nll": nll / max(supervised, 1), "selfaug/kl": kl / max(aligned, 1)}
        logs = {name: float(f"{mean:.7g}") for name, mean in means.items()}
        logs["selfaug/alpha"] = self.alpha
        self.clear()
        return logs


RUNNING = Metrics()
