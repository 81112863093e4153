"""``SELFAUG_ANCHORS=1``: what a row without labels weighs, from the global batch that an HF Trainer collects for one
optimizer step. So it weighs the same in whichever micro-batch and process it is, also alone in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..labels import IGNORE_INDEX, shifted
from ..padding import numbers
from ..positions import rows_with
from .runs import PerRun


class _Batch:
    """What is known of the global batch of one run."""

    tokens: float | None = None


_BATCHES = PerRun(_Batch)


def count(state: Any, batches: Iterable[Any], device: torch.device, together: bool) -> None:
    """Count tokens and rows with labels, and rows, in the micro-batches of one optimizer step.

    Args:
        together: over all processes, as the Trainer's ``num_items_in_batch`` then is. Each process has to call this at
            the same step. Otherwise each process counts its own.
    """
    tokens = labelled = rows = 0
    for batch in batches:
        following = _next_labels(batch)
        if following is not None:
            supervised, mask = following != IGNORE_INDEX, batch.get("attention_mask")
            position_ids = batch.get("position_ids")
            masked = isinstance(mask, Tensor) and mask.shape == supervised.shape
            real, documents = (mask != 0, numbers(mask)) if masked else (torch.ones_like(supervised), None)
            tokens += int(supervised.sum())
            labelled += rows_with(supervised, position_ids, documents)
            rows += rows_with(real, position_ids, documents)
    if together and torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = torch.tensor((tokens, labelled, rows), device=device)
        torch.distributed.all_reduce(counts)
        tokens, labelled, rows = counts.tolist()
    # where no row has labels, the trainer's count of them is 0, and the sum is divided by 1
    _BATCHES.of_owner(state).tokens = tokens / labelled if labelled else 1 / max(1, rows)


def _next_labels(batch: Any) -> Tensor | None:
    """(B, T): the label of the token that each position predicts. None for a batch of another kind of task."""
    for name, next_labels in (("labels", shifted), ("shift_labels", lambda given: given)):
        given = batch.get(name) if isinstance(batch, Mapping) else None
        if given is not None:
            return next_labels(given) if isinstance(given, Tensor) and given.dim() == 2 else None
    return None


def tokens(state: Any) -> float | None:
    """How many supervised tokens an anchor weighs as much as: those of a mean row with labels. None if the trainer
    collects no batches.
    """
    return _BATCHES.of_owner(state).tokens
