"""``SELFAUG_ANCHORS=1``: what a row without labels weighs, from the global batch that an HF Trainer collects for one
optimizer step. So it weighs the same in whichever micro-batch and process it is, also alone in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..labels import IGNORE_INDEX, shifted
from ..positions import rows_with
from .runs import PerRun


class _Batch:
    """What is known of the global batch of one run."""

    tokens: float | None = None


_BATCHES = PerRun(_Batch)


def count(state: Any, batches: Iterable[Any], device: torch.device) -> None:
    """Count tokens and rows with labels, and rows, in the micro-batches of one optimizer step, over all processes. Each
    process has to call this at the same step.
    """
    tokens = labelled = rows = 0
    for batch in batches:
        labels = batch.get("labels") if isinstance(batch, Mapping) else None
        if labels is not None:
            supervised, mask = shifted(labels) != IGNORE_INDEX, batch.get("attention_mask")
            position_ids = batch.get("position_ids")
            real = mask != 0 if mask is not None and mask.shape == labels.shape else torch.ones_like(supervised)
            tokens += int(supervised.sum())
            labelled += rows_with(supervised, position_ids)
            rows += rows_with(real, position_ids)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        counts = torch.tensor((tokens, labelled, rows), device=device)
        torch.distributed.all_reduce(counts)
        tokens, labelled, rows = counts.tolist()
    # where no row has labels, the trainer's count of them is 0, and the sum is divided by 1
    _BATCHES.of_owner(state).tokens = tokens / labelled if labelled else 1 / max(1, rows)


def tokens(state: Any) -> float | None:
    """How many supervised tokens an anchor weighs as much as: those of a mean row with labels. None if the trainer
    collects no batches.
    """
    return _BATCHES.of_owner(state).tokens
