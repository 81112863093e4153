"""Which positions of a batch are supervised, aligned, padding; and to which row each belongs.

All masks are (B, T) bool and speak of the position *whose logits are used*: the logits at t predict token t + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import sample

IGNORE_INDEX = -100


def next_labels(labels: Tensor) -> Tensor:
    """(B, T) long: the label that the logits at each position are scored against, IGNORE_INDEX at the last one."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def real_tokens(attention_mask: Tensor | Mapping[str, Tensor] | None, labels: Tensor) -> Tensor:
    """(B, T) bool, False at padding.

    ``attention_mask`` may be absent (no padding), (B, T) with 0 at padding and any other number elsewhere (packed
    rows number their documents 1, 2, 3), or (B, 1, T, T): bool (True: may attend) or additive float (0: may attend).
    A real token always attends to itself, so the diagonal tells. Masks by type of layer, as transformers 5 takes
    them: that of full attention.

    Raises:
        ValueError: what is no such mask, or one of another length than the labels.
    """
    if isinstance(attention_mask, Mapping):
        attention_mask = attention_mask.get("full_attention")
    if attention_mask is None:
        return torch.ones_like(labels, dtype=torch.bool)
    if not isinstance(attention_mask, Tensor):
        raise ValueError(f"attention_mask must be a tensor, found {type(attention_mask).__name__}")
    if attention_mask.dim() == 2:
        mask = attention_mask != 0
    elif attention_mask.dim() == 4:
        diagonal = attention_mask[:, 0].diagonal(dim1=-2, dim2=-1)
        mask = diagonal == 0 if diagonal.is_floating_point() else diagonal != 0
    else:
        raise ValueError(f"attention_mask must have 2 or 4 dimensions, found {attention_mask.dim()}")
    if mask.shape[-1] != labels.shape[-1]:
        raise ValueError(f"attention_mask covers {mask.shape[-1]} positions, labels {labels.shape[-1]}")
    return mask.expand(labels.shape)


def aligned(labels: Tensor, real: Tensor, positions: str) -> Tensor:
    """(B, T) bool: where the tuned model is held to the base model.

    positions:
        "input": ``labels == -100``, un-shifted, as in the authors' code. It includes the last prompt position, whose
            logits predict the first response token and which NLL trains too.
        "strict-input": the same without positions that NLL trains.
        "output": the positions that NLL trains.
        "all": every real token.
    Padding is never aligned (the authors' code counts it).
    """
    trained = next_labels(labels) != IGNORE_INDEX
    chosen = {
        "input": labels == IGNORE_INDEX,
        "strict-input": (labels == IGNORE_INDEX) & ~trained,
        "output": trained,
        "all": torch.ones_like(real),
    }[positions]
    return chosen & real


def rows(labels: Tensor, position_ids: Tensor | None) -> Tensor:
    """(B, T) long: a number for the row that each position belongs to, from 0.

    Without ``position_ids`` a row is a row of the batch. Packed batches restart ``position_ids`` at each document:
    then a document is a row, so that packing does not change what "sequence" reduction means. Left padding, whose
    position ids are clamped to a constant, opens rows of its own; they hold no token that counts.
    """
    B, T = labels.shape
    starts = torch.zeros(B, T, dtype=torch.long, device=labels.device)
    starts[:, 0] = 1
    if position_ids is not None and position_ids.dim() == 2:
        ids = position_ids.expand(B, T)
        starts[:, 1:] = ids[:, 1:] != ids[:, :-1] + 1
    return starts.flatten().cumsum(0).view(B, T) - 1


def kl_weights(aligned: Tensor, supervised: Tensor, row: Tensor, reduction: str) -> Tensor:
    """(B, T) float: weights w that make ``sum(w * KL) / N`` the reduction's mean, 0 where nothing is aligned.

    N is the number of supervised tokens that NLL is divided by: the micro-batch's own, or ``num_items_in_batch``.

        token:     w_t = supervised / aligned                    (both counted over the micro-batch)
        sequence:  w_t = supervised in row(t) / aligned in row(t)

    "sequence" gives a global batch the same gradient however its rows are split into micro-batches and processes.
    """
    if reduction == "token":
        row = torch.zeros_like(row)
    zeros = torch.zeros(int(row.max()) + 1, dtype=torch.double, device=row.device)
    per_row = zeros.scatter_add(0, row[aligned], torch.ones_like(row[aligned], dtype=torch.double))
    wanted = zeros.scatter_add(0, row[supervised], torch.ones_like(row[supervised], dtype=torch.double))
    return (wanted / per_row.clamp(min=1))[row] * aligned


@dataclass
class Selection:
    """The positions that take part in one step's loss, by their index in the flattened (B * T) batch, aligned ones
    first.
    """

    index: Tensor  # (P,) long
    targets: Tensor  # (P,) long, IGNORE_INDEX where NLL takes no part
    kl_weight: Tensor  # (A,) double
    supervised: int
    aligned: int  # A, of those that were sampled
    all_aligned: Tensor  # (N,) long, ascending: the same whether sampled or not
    counted: int  # what sums are divided by where the trainer does not say
    length: int  # T up to and with the last aligned position of any row
    total: int  # T


def select(
    labels: Tensor,
    attention_mask: Tensor | Mapping[str, Tensor] | None,
    position_ids: Tensor | None,
    positions: str,
    reduction: str,
    divided_by_batch: bool,
    share: float = 1.0,
    generator: torch.Generator | None = None,
) -> Selection:
    """Reads the masks of a batch, on the CPU: copying them there is the one host synchronisation of a step.

    share: below 1, the KL is computed at a sample of the aligned positions, drawn with ``generator``, see
        :mod:`.sample`.
    divided_by_batch: the trainer gave ``num_items_in_batch``. Then a micro-batch without a supervised token weighs
        nothing. Without it, such a micro-batch (whose stock loss is NaN) keeps its KL as a plain mean.
    """
    labels = labels.cpu()
    real = real_tokens(attention_mask, labels).cpu()  # of a 4-D mask, the diagonal alone is copied
    targets = next_labels(labels)
    supervised = targets != IGNORE_INDEX
    chosen = aligned(labels, real, positions)
    row = rows(labels, None if position_ids is None else position_ids.cpu())
    counted = supervised if divided_by_batch or supervised.any() else chosen
    weight = kl_weights(chosen, counted, row, reduction)
    all_aligned = chosen.flatten().nonzero().squeeze(-1)
    if share < 1 and generator is not None and len(all_aligned):
        kept = all_aligned[sample.positions(len(all_aligned), share, generator)]
        chosen = torch.zeros_like(chosen).flatten().index_fill(0, kept, True).view_as(chosen)
        weight = weight * (len(all_aligned) / len(kept))
    index = torch.cat((chosen.flatten().nonzero(), (supervised & ~chosen).flatten().nonzero())).squeeze(-1)
    A = int(chosen.sum())
    columns = chosen.any(0).nonzero()
    return Selection(
        index=index,
        targets=targets.flatten()[index],
        kl_weight=weight.flatten()[index[:A]],
        supervised=int(supervised.sum()),
        aligned=A,
        all_aligned=all_aligned,
        counted=max(1, int(supervised.sum()) or len(all_aligned)),
        length=int(columns[-1]) + 1 if len(columns) else 0,
        total=labels.shape[1],
    )


def aligned_only(selection: Selection) -> Selection:
    """The same without NLL, for a step whose NLL somebody else has computed."""
    index = selection.index[: selection.aligned]
    return replace(selection, index=index, targets=torch.full_like(index, IGNORE_INDEX))


def full_labels(labels: Tensor, logits_to_keep: int | Tensor, total: int) -> Tensor:
    """(B, T) labels from labels that a trainer cut to the positions in ``logits_to_keep``; IGNORE_INDEX elsewhere.

    An int k keeps the last k positions. A (T,) bool mask keeps the positions whose logits are used, so the label
    after the j-th kept position is the j+1-th of the cut ones (ms-swift: swift/trainers/mixin.py,
    prepare_logits_to_keep).
    """
    if labels.shape[1] == total:
        return labels
    full = labels.new_full((labels.shape[0], total), IGNORE_INDEX)
    if isinstance(logits_to_keep, int):
        full[:, total - labels.shape[1] :] = labels
    else:
        kept = logits_to_keep.nonzero().squeeze(-1) if logits_to_keep.dtype == torch.bool else logits_to_keep
        full[:, kept[:-1] + 1] = labels[:, 1:]
    return full


def kept_targets(selection: Selection, rows: int, logits_to_keep: int | Tensor) -> Tensor:
    """(B, K) long: what the logits at the positions in ``logits_to_keep`` are scored against; an int k keeps the last
    k, and 0 keeps all.
    """
    targets = torch.full((rows * selection.total,), IGNORE_INDEX)
    targets[selection.index] = selection.targets
    columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep.cpu()
    return targets.view(rows, selection.total)[:, columns]
