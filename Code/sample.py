"""``SELFAUG_SAMPLE=p``: the KL at a sample of the aligned positions, so that its share of the head's work falls with p.
The sample is uniform or, with ``SELFAUG_SAMPLE_BY=shift``, has more of the positions whose hidden state has moved more.

The sample is drawn without replacement, and each position is weighted by the inverse of its chance to be in it, so loss
and gradient are right on average. The draw depends on torch's CPU generator: ``set_seed`` sets it, the HF Trainer saves
it with its checkpoints, and ``torch.utils.checkpoint`` rewinds it before it computes anything twice. So a run can be
repeated and resumed, and a recomputation sees the same positions. Each process draws other positions; the processes of
one tensor-parallel group compute the same loss together and draw the same ones.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .labels import IGNORE_INDEX
from .positions import Selection

FLOOR = 0.1  # the part of a chance that does not depend on the score: no weight is above 10 times the uniform one


def step_generator(model: Any = None) -> torch.Generator:
    """A generator for one step. Its seed is one number from torch's CPU generator plus the rank of the process."""
    number = int(torch.randint(2**62, ()))
    # Ranks stay apart: consecutive seeds of one generator differ in all bits of what they draw.
    return torch.Generator().manual_seed((number + _rank(model)) % 2**63)


def positions(count: int, share: float, generator: torch.Generator) -> Tensor:
    """(k,) long, ascending: a uniform choice of k of ``count`` positions. k is ``share * count`` to the nearest, and at
    least 1 if there is any.
    """
    return torch.randperm(count, generator=generator)[: _size(count, share)].sort().values


@torch.no_grad()
def shift(tuned: Tensor, reference: Tensor) -> Tensor:
    """(A,) double, on the CPU: how far each hidden state has moved, from (A, H) of the tuned model and of the
    reference. The copy to the CPU waits for the tuned pass. States on the meta device have no numbers: then all are 0.
    """
    if tuned.is_meta:
        return torch.zeros(len(tuned), dtype=torch.double)
    reference = reference.to(tuned.device)
    parts = [
        torch.linalg.vector_norm(a.float() - b.float(), dim=-1)
        for a, b in zip(tuned.split(4096), reference.split(4096))
    ]
    return torch.cat(parts).cpu().double() if parts else torch.zeros(0, dtype=torch.double)


def chances(scores: Tensor, k: int) -> Tensor:
    """(A,) double, with the sum k: the chance of each position to be in a sample of k of them, in proportion to its
    score (A,) >= 0, and never above 1. :data:`FLOOR` of each chance does not depend on the score: where no hidden state
    moves, a head with LoRA may still change the logits. Without any score, or if one is not finite, all are equal.
    """
    total = float(scores.sum())
    equal = torch.full_like(scores, 1 / max(1, len(scores)))
    usable = 0 < total < math.inf
    weight = (1 - FLOOR) * scores / total + FLOOR * equal if usable else equal
    certain = torch.zeros_like(weight, dtype=torch.bool)
    while True:  # a chance above 1 becomes 1, and the others share the rest; at most k rounds
        left = weight.masked_fill(certain, 0)
        chance = torch.where(
            certain, torch.ones_like(weight), left * ((k - int(certain.sum())) / left.sum().clamp(1e-300))
        )
        above = (chance >= 1) & ~certain
        if not bool(above.any()):
            return chance
        certain |= above


def by_score(scores: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """((k,) long, ascending; (k,) double): positions drawn systematically by :func:`chances`, and their chances. Along
    the text, one point in each unit of the summed chances, all at the same random place in their unit (Madow 1949).
    """
    if not len(scores):
        return torch.zeros(0, dtype=torch.long), scores
    k = _size(len(scores), share)
    chance = chances(scores, k)
    ends = chance.cumsum(0)
    points = torch.rand((), generator=generator, dtype=torch.double) + torch.arange(k)
    # the rounding of the last end may leave the last point beyond the last position
    drawn = torch.searchsorted(ends, points, right=True).clamp(max=len(scores) - 1).unique()
    return drawn, chance[drawn]


def sampled(chosen: Selection, share: float, generator: torch.Generator) -> Selection:
    """The selection with a uniform ``share`` of its aligned positions."""
    drawn = positions(chosen.aligned, share, generator)
    return taken(chosen, drawn, torch.full((len(drawn),), len(drawn) / max(1, chosen.aligned), dtype=torch.double))


def taken(chosen: Selection, drawn: Tensor, chance: Tensor) -> Selection:
    """The selection with the aligned positions ``drawn`` (k,), each of which was drawn with its ``chance`` (k,). A
    supervised position that is not drawn keeps its NLL.
    """
    if not chosen.aligned:
        return chosen
    trained = chosen.next_labels != IGNORE_INDEX
    trained[drawn] = False
    others = trained.nonzero().squeeze(-1)
    order = torch.cat((drawn, others[chosen.index[others].argsort()]))
    return replace(
        chosen,
        index=chosen.index[order],
        next_labels=chosen.next_labels[order],
        kl_weight=chosen.kl_weight[drawn] / chance,
        stands_for=chosen.stands_for[drawn] / chance,
        aligned=len(drawn),
    )


def without_aligned(chosen: Selection) -> Selection:
    """The selection with its supervised positions alone."""
    return taken(chosen, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.double))


def _size(count: int, share: float) -> int:
    return min(count, max(1, round(share * count)))


def _rank(model: Any) -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0
    return torch.distributed.get_rank() // (getattr(model, "_tp_size", None) or 1)
