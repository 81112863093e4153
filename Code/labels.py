"""The labels of a call: which of its arguments holds them, and what they are at every position of the batch.

``labels`` are not shifted: the label at t is that of token t. ``shift_labels`` (context parallelism, Ulysses, x/y
pretraining) are next labels: the label at t is that of token t + 1, which the logits at t are scored against. A trainer
gives one of them, both, or the shifted ones under both names. It may cut either to the positions in ``logits_to_keep``.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100


def given(call: dict[str, Any]) -> Tensor | None:
    """The argument of ``call`` that holds labels, of either kind; None if there is none."""
    labels = call.get("labels")
    return call.get("shift_labels") if labels is None else labels


def without_ignored(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """``call`` of transformers' own forward, without ``shift_labels`` if its loss ignores them (until 4.49)."""
    loss_function = getattr(model, "loss_function", None)
    if "shift_labels" not in call or loss_function is None:
        return call
    if "shift_labels" in inspect.signature(loss_function).parameters:
        return call
    return {name: value for name, value in call.items() if name != "shift_labels"}


def logits_to_keep(call: dict[str, Any]) -> Any:
    """The positions whose logits the caller wants: an int k for the last k, 0 for all, a (T,) bool mask or indices."""
    return call.get("logits_to_keep", call.get("num_logits_to_keep", 0))


def shifted(labels: Tensor) -> Tensor:
    """(B, T) long: the next label of each position, which its logits are scored against. IGNORE_INDEX at the last."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def at_all_positions(labels: Tensor, call: dict[str, Any], total: int) -> tuple[Tensor, Tensor]:
    """(labels, next labels) of all positions, both (B, total) long.

    Args:
        labels: those of the call or of its trainer; next labels if the call has ``shift_labels`` alone.
        total: T.

    Raises:
        ValueError: the labels have neither T columns nor one for each position in ``logits_to_keep``.
    """
    keep = logits_to_keep(call)
    if call.get("shift_labels") is None:
        labels = full_labels(labels, keep, total)
        return labels, shifted(labels)
    next_labels = _full_next_labels(call["shift_labels"], keep, total)
    first = next_labels[:, :1]  # the first token's own label is lost; take it to be supervised if the second token is
    if labels.shape == next_labels.shape:  # labels that are not shifted may have been given, too
        own = labels.to(next_labels.device)
        first = torch.where((own[:, 1:] == next_labels[:, :-1]).all(), own[:, :1], first)
    return torch.cat((first, next_labels[:, :-1]), 1), next_labels


def full_labels(labels: Tensor, keep: int | Tensor, total: int) -> Tensor:
    """(B, T) labels from labels that a trainer cut to ``keep``, see :func:`logits_to_keep`; IGNORE_INDEX elsewhere.

    An int k > 0 keeps the last k positions. A (T,) bool mask or (K,) indices keep the positions whose logits are used,
    so the label after the j-th kept position is the j+1-th of the cut ones (ms-swift: swift/trainers/mixin.py,
    prepare_logits_to_keep).
    """
    if labels.shape[1] == total:
        return labels
    kept = _kept_positions(labels, keep, total)
    full = labels.new_full((labels.shape[0], total), IGNORE_INDEX)
    if isinstance(keep, int):
        full[:, kept] = labels
    else:
        full[:, kept[:-1] + 1] = labels[:, 1:]
    return full


def _full_next_labels(next_labels: Tensor, keep: int | Tensor, total: int) -> Tensor:
    """(B, T) next labels, likewise. Each belongs to the kept position itself, not to the token after it."""
    if next_labels.shape[1] == total:
        return next_labels
    full = next_labels.new_full((next_labels.shape[0], total), IGNORE_INDEX)
    full[:, _kept_positions(next_labels, keep, total)] = next_labels
    return full


def _kept_positions(labels: Tensor, keep: int | Tensor, total: int) -> Tensor:
    """(K,) long: the positions in ``keep``, of which ``labels`` (B, K) holds the labels."""
    if isinstance(keep, int):
        kept = torch.arange(total - min(keep or total, total), total, device=labels.device)
    else:
        kept = keep.nonzero().squeeze(-1) if keep.dtype == torch.bool else keep
    if labels.shape[1] != len(kept):
        raise ValueError(
            f"expected labels of {total} positions, as the model was called with, or of the {len(kept)} in "
            f"logits_to_keep; found {labels.shape[1]}"
        )
    return kept
