"""``SELFAUG_SAMPLE=p``: the KL at a uniform sample of the aligned positions, so that its share of the head's work falls
with p.

The sample is drawn without replacement and weighted by the inverse of each position's chance to be in it, so loss and
gradient are right on average. It follows from torch's CPU generator, which ``set_seed`` sets, which the HF Trainer
saves with its checkpoints, and which ``torch.utils.checkpoint`` rewinds before it computes anything twice: a run can
be repeated and resumed, and a recomputation sees the same positions. Processes draw different positions; those of one
tensor-parallel group, which compute the same loss together, draw the same ones.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def step_generator(model: Any = None) -> torch.Generator:
    """A generator for one step, which takes one number from torch's CPU generator and mixes the process's rank in."""
    number = int(torch.randint(2**62, ()))
    # Ranks stay apart: consecutive seeds of one generator differ in all bits of what they draw.
    return torch.Generator().manual_seed((number + _rank(model)) % 2**63)


def positions(count: int, share: float, generator: torch.Generator) -> Tensor:
    """(k,) long, ascending: a uniform choice of k of ``count`` positions; k is ``share * count`` to the nearest, and at
    least 1 where there is any.
    """
    k = min(count, max(1, round(share * count)))
    return torch.randperm(count, generator=generator)[:k].sort().values


def _rank(model: Any) -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0
    return torch.distributed.get_rank() // (getattr(model, "_tp_size", None) or 1)
