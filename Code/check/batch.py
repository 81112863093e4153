"""The rows of one micro-batch, and the positions in them that a step uses."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import config, sample
from ..labels import IGNORE_INDEX
from ..positions import Selection, select
from ..toolkit import training_rows
from ..toolkit.models import load_tokenizer

MADE_UP = 2048  # tokens of the row that stands for the user's
PROMPT = 0.85  # the share of its tokens that are prompt


def made_up() -> dict[str, Tensor]:
    """One row of :data:`MADE_UP` tokens, of which the first :data:`PROMPT` are prompt."""
    ids = torch.zeros(1, MADE_UP, dtype=torch.long)
    labels = ids.clone()
    labels[:, : int(PROMPT * MADE_UP)] = IGNORE_INDEX
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def first_rows(path: Path, count: int, model: str, vocabulary: int, longest: int | None) -> dict[str, Tensor]:
    """The first ``count`` rows of a file, tokenised and padded on the right: {"input_ids", "labels", "attention_mask"},
    each (B, T) long.

    Args:
        model: where the tokenizer comes from, if rows hold texts.
        vocabulary: how many tokens the model has.
        longest: cut rows to so many tokens, as a trainer's ``max_length`` does; None leaves them whole.

    Raises:
        RowError: a row is malformed, or there is none. The error has file and line.
        Refusal: transformers cannot load the tokenizer.
    """
    rows = list(islice(training_rows.read(path), count))
    if not rows:
        raise training_rows.RowError(f"{path}: expected rows with {training_rows.ACCEPTED}; found none")
    tokenizer = load_tokenizer(model) if any("input_ids" not in row for _, row in rows) else None
    tokenised = [training_rows.tokenised(row, where, tokenizer, vocabulary) for where, row in rows]
    ids, labels = ([torch.tensor(row[name][:longest]) for row in tokenised] for name in ("input_ids", "labels"))
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


def selection(data: dict[str, Tensor], settings: config.Settings) -> Selection:
    """The positions of one step on this batch, and of a sample as many as a step draws."""
    chosen = select(
        data["labels"], data["attention_mask"], None, settings.positions, settings.reduction, divided_by_batch=True
    )
    if settings.sample == 1:
        return chosen
    return sample.sampled(chosen, settings.sample, torch.Generator().manual_seed(0))


def counts(data: dict[str, Tensor], chosen: Selection) -> dict[str, Any]:
    """What there is in the batch, in numbers."""
    return {
        "rows": chosen.rows,
        "positions": chosen.rows * chosen.total,
        "padding": int((data["attention_mask"] == 0).sum()),
        "supervised": chosen.supervised,
        "aligned": len(chosen.all_aligned),
        "computed": chosen.aligned,
    }
