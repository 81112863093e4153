"""``SELFAUG_SAMPLE=p``: the KL at a uniform sample of the aligned positions, so that its share of the head's work falls
with p.

The sample is drawn without replacement, and each position is weighted by the inverse of its chance to be in it, so loss
and gradient are right on average. The draw depends on torch's CPU generator: ``set_seed`` sets it, the HF Trainer saves
it with its checkpoints, and ``torch.utils.checkpoint`` rewinds it before it computes anything twice. So a run can be
repeated and resumed, and a recomputation sees the same positions. Each process draws other positions; the processes of
one tensor-parallel group compute the same loss together and draw the same ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .labels import IGNORE_INDEX
from .positions import Selection


def step_generator(model: Any = None) -> torch.Generator:
    """A generator for one step. Its seed is one number from torch's CPU generator plus the rank of the process."""
    number = int(torch.randint(2**62, ()))
    # Ranks stay apart: consecutive seeds of one generator differ in all bits of what they draw.
    return torch.Generator().manual_seed((number + _rank(model)) % 2**63)


def positions(count: int, share: float, generator: torch.Generator) -> Tensor:
    """(k,) long, ascending: a uniform choice of k of ``count`` positions. k is ``share * count`` to the nearest, and at
    least 1 if there is any.
    """
    k = min(count, max(1, round(share * count)))
    return torch.randperm(count, generator=generator)[:k].sort().values


def sampled(chosen: Selection, share: float, generator: torch.Generator) -> Selection:
    """The selection with ``share`` of its aligned positions. A supervised position that is not drawn keeps its NLL."""
    if not chosen.aligned:
        return chosen
    drawn = positions(chosen.aligned, share, generator)
    trained = chosen.next_labels != IGNORE_INDEX
    trained[drawn] = False
    others = trained.nonzero().squeeze(-1)
    order = torch.cat((drawn, others[chosen.index[others].argsort()]))
    return replace(
        chosen,
        index=chosen.index[order],
        next_labels=chosen.next_labels[order],
        kl_weight=chosen.kl_weight[drawn] * (chosen.aligned / len(drawn)),
        aligned=len(drawn),
    )


def _rank(model: Any) -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0
    return torch.distributed.get_rank() // (getattr(model, "_tp_size", None) or 1)
