"""Which positions of a batch are supervised, aligned, padding; and to which row each belongs.

All masks are (B, T) bool and speak of the position *whose logits are used*: the logits at t predict token t + 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import sample

IGNORE_INDEX = -100


def next_labels(labels: Tensor) -> Tensor:
    """(B, T) long: the label that the logits at each position are scored against, IGNORE_INDEX at the last one."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def real_tokens(attention_mask: Any, labels: Tensor) -> Tensor:
    """(B, T) bool, False at padding; without a mask all are real.

    ``attention_mask`` may be (B, T) with 0 at padding and any other number elsewhere (packed rows number their
    documents 1, 2, 3), (B, 1 or heads, T, T): bool (True: may attend) or additive float (0: may attend), or a
    ``BlockMask`` of flex attention. A real token attends to itself, so the diagonal tells. Of masks by type of layer,
    as transformers 5 takes them, any one tells.

    Raises:
        ValueError: what is no such mask, or one of another length than the labels.
    """
    mask = _any_mask(attention_mask)
    if mask is None:
        return torch.ones_like(labels, dtype=torch.bool)
    if hasattr(mask, "mask_mod"):
        real = _block_mask_diagonal(mask, labels)
    elif not isinstance(mask, Tensor):
        raise ValueError(f"attention_mask must be a tensor, found {type(mask).__name__}")
    elif mask.dim() == 2:
        real = mask != 0
    elif mask.dim() == 4:
        real = _attended(may_attend(mask)[:, 0, :, : labels.shape[1]])
    else:
        raise ValueError(f"attention_mask must have 2 or 4 dimensions, found {mask.dim()}")
    if real.shape[-1] != labels.shape[-1]:
        raise ValueError(f"attention_mask covers {real.shape[-1]} positions, labels {labels.shape[-1]}")
    return real.expand(labels.shape)


def _any_mask(attention_mask: Any) -> Any:
    """Of masks by type of layer that of full attention, or the first one if there is none."""
    if not isinstance(attention_mask, Mapping):
        return attention_mask
    masks = {kind: mask for kind, mask in attention_mask.items() if mask is not None}
    return masks.get("full_attention", next(iter(masks.values()), None))


def may_attend(mask: Tensor) -> Tensor:
    """Bool of the same shape, True where a query may see a key, of a 4-D mask: bool, integers, or floats that are added
    to the scores. Among floats, what hides a key is far below 0; a bias on what is seen (ALiBi) is not.
    """
    if not mask.is_floating_point():
        return mask != 0
    lowest = mask.amin()
    return (mask > lowest / 2) | (lowest > -1e3)


def _attended(attends: Tensor) -> Tensor:
    """(B, T) bool, the real tokens, from (B, T, T) bool: whether row t attends to column s.

    Padding does not attend to itself, unless transformers opened its row: SDPA cannot have a row without any True, so
    there a padding row attends to everything. No other row attends to that padding.
    """
    opened = attends.all(-1)
    opened[:, -1] = False  # under a causal mask the last token attends to everything
    by_others = (attends & ~opened.unsqueeze(-1)).any(-2)
    return attends.diagonal(dim1=-2, dim2=-1) & (by_others | ~opened)


def _block_mask_diagonal(mask: Any, labels: Tensor) -> Tensor:
    """(B, T) bool: whether each token of ``labels`` (B, T) attends to itself under flex attention's BlockMask."""
    rows, T, device = mask.shape[0], min(labels.shape[1], *mask.shape[-2:]), mask.kv_num_blocks.device
    b = torch.arange(rows, device=device).repeat_interleave(T)
    t = torch.arange(T, device=device).repeat(rows)
    attends = torch.vmap(mask.mask_mod)(b, torch.zeros_like(b), t, t)
    return attends.view(rows, T).expand(len(labels), T)


def without_padding(labels: Tensor, input_ids: Tensor | None, pad_tokens: Collection[int]) -> Tensor:
    """(B, T) bool, False at padding, of a batch without an attention mask.

    Padding is a run of one of ``pad_tokens`` without labels at either end of a row. One at the beginning may be the
    beginning-of-text token, where a model pads with that: the last of a run at the left counts as real.
    """
    real = torch.ones_like(labels, dtype=torch.bool)
    if input_ids is None:
        return real
    for token in pad_tokens:
        pad = (input_ids == token) & (labels == IGNORE_INDEX)
        real &= ~pad.flip(-1).cumprod(-1).flip(-1).bool()
        left = pad.cumprod(-1).bool()
        real[:, :-1] &= ~(left[:, :-1] & left[:, 1:])
    return real


def unexplained_tail(labels: Tensor, input_ids: Tensor, real: Tensor) -> int:
    """The length of the longest run of one and the same token at the end of a row, without labels and after labels.

    Without a mask it may be padding with a token that nobody has named.
    """
    tail = (input_ids == input_ids[:, -1:]) & (labels == IGNORE_INDEX) & real
    length = tail.flip(-1).cumprod(-1).sum(-1)
    supervised = (labels != IGNORE_INDEX).any(-1)
    return int((length * supervised).max())


def aligned(labels: Tensor, real: Tensor, positions: str, trained: Tensor | None = None) -> Tensor:
    """(B, T) bool: where the tuned model is held to the base model. ``trained``: (B, T) bool, where NLL is computed,
    if that is not where the next label says.

    positions:
        "input": ``labels == -100``, un-shifted, as in the authors' code. It includes the last prompt position, whose
            logits predict the first response token and which NLL trains too.
        "strict-input": the same without positions that NLL trains.
        "output": the positions that NLL trains.
        "all": every real token.
    Padding is never aligned (the authors' code counts it).
    """
    if trained is None:
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
    maybe_padding: int  # tokens at the end of a row that may be padding, see unexplained_tail
    rows: int  # B


def select(
    labels: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    positions: str,
    reduction: str,
    divided_by_batch: bool,
    share: float = 1.0,
    generator: torch.Generator | None = None,
    input_ids: Tensor | None = None,
    pad_tokens: Collection[int] = (),
    targets: Tensor | None = None,
) -> Selection:
    """Reads the masks of a batch, on the CPU, where they are copied together if they are on one device. That is where
    a step waits for the device; what it decides goes back in a few small copies.

    input_ids, pad_tokens: tell padding where there is no mask, see :func:`without_padding`.
    targets: (B, T) long, what the logits at each position are scored against, where that is more than the labels say;
        None: the next label.
    share: below 1, the KL is computed at a sample of the aligned positions, drawn with ``generator``, see
        :mod:`.sample`.
    divided_by_batch: the trainer gave ``num_items_in_batch``. Then a micro-batch without a supervised token weighs
        nothing. Without it, such a micro-batch (whose stock loss is NaN) keeps its KL as a plain mean.
    """
    if position_ids is not None and position_ids.dim() != 2:
        position_ids = None
    unmasked = _any_mask(attention_mask) is None
    mask = None if unmasked else real_tokens(attention_mask, labels)
    known = unmasked and input_ids is not None and not input_ids.is_meta
    labels, mask, position_ids, ids = _on_cpu(labels, mask, position_ids, input_ids if known else None)
    real = without_padding(labels, ids, pad_tokens) if unmasked else mask != 0
    targets = next_labels(labels) if targets is None else targets.cpu()
    supervised = targets != IGNORE_INDEX
    chosen = aligned(labels, real, positions, supervised)
    row = rows(labels, position_ids)
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
        maybe_padding=unexplained_tail(labels, ids, real) if ids is not None else 0,
        rows=labels.shape[0],
    )


def _on_cpu(labels: Tensor, *others: Tensor | None) -> list[Any]:
    """(B, T) copies on the CPU, as long; those on one device are copied together, in one synchronisation."""
    tensors = [labels, *(None if t is None else t.to(labels.dtype).expand_as(labels) for t in others)]
    together = [t for t in tensors if t is not None and t.device == labels.device]
    copied = iter(torch.stack(together).cpu())
    return [t if t is None else next(copied) if t.device == labels.device else t.cpu() for t in tensors]


def aligned_only(selection: Selection) -> Selection:
    """The same without NLL, for a step whose NLL somebody else has computed."""
    index = selection.index[: selection.aligned]
    return replace(selection, index=index, targets=torch.full_like(index, IGNORE_INDEX))


def full_labels(labels: Tensor, logits_to_keep: int | Tensor, total: int) -> Tensor:
    """(B, T) labels from labels that a trainer cut to the positions in ``logits_to_keep``; IGNORE_INDEX elsewhere.

    An int k > 0 keeps the last k positions. A (T,) bool mask or (K,) indices keep the positions whose logits are used,
    so the label after the j-th kept position is the j+1-th of the cut ones (ms-swift: swift/trainers/mixin.py,
    prepare_logits_to_keep).

    Raises:
        ValueError: there are neither T labels nor as many as positions are kept.
    """
    if labels.shape[1] == total:
        return labels
    kept = _kept_positions(labels, logits_to_keep, total)
    full = labels.new_full((labels.shape[0], total), IGNORE_INDEX)
    if isinstance(logits_to_keep, int):
        full[:, kept] = labels
    else:
        full[:, kept[:-1] + 1] = labels[:, 1:]
    return full


def full_targets(shifted: Tensor, logits_to_keep: int | Tensor, total: int) -> Tensor:
    """(B, T) labels that are shifted already, likewise: each belongs to the position that is kept."""
    if shifted.shape[1] == total:
        return shifted
    full = shifted.new_full((shifted.shape[0], total), IGNORE_INDEX)
    full[:, _kept_positions(shifted, logits_to_keep, total)] = shifted
    return full


def _kept_positions(labels: Tensor, logits_to_keep: int | Tensor, total: int) -> Tensor:
    if isinstance(logits_to_keep, int):
        kept = torch.arange(total - min(logits_to_keep or total, total), total, device=labels.device)
    else:
        kept = logits_to_keep.nonzero().squeeze(-1) if logits_to_keep.dtype == torch.bool else logits_to_keep
    if labels.shape[1] != len(kept):
        raise ValueError(
            f"expected labels of {total} positions, as the model was called with, or of the {len(kept)} in "
            f"logits_to_keep; found {labels.shape[1]}"
        )
    return kept


def kept_targets(selection: Selection, rows: int, logits_to_keep: int | Tensor) -> Tensor:
    """(B, K) long: what the logits at the positions in ``logits_to_keep`` are scored against; an int k keeps the last
    k, and 0 keeps all.
    """
    targets = torch.full((rows * selection.total,), IGNORE_INDEX)
    targets[selection.index] = selection.targets
    columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep.cpu()
    return targets.view(rows, selection.total)[:, columns]


def divisor(num_items: Any, counted: int, device: torch.device) -> int | Tensor:
    """What sums over tokens are divided by: the trainer's ``num_items_in_batch``, or ``counted``, the tokens that count
    in this micro-batch. A 0 becomes 1: where nothing is counted the sum is 0 as well, and stays that.
    """
    if isinstance(num_items, Tensor):
        num_items = num_items.to(device)
        return torch.where(num_items == 0, torch.ones_like(num_items), num_items)
    return (counted if num_items is None else num_items) or 1


def without_nan(loss: Tensor, supervised: int) -> Tensor:
    """A loss that somebody else computed, or 0 where it is NaN for want of a supervised token."""
    if supervised == 0 and bool(loss.detach().isnan().any()):
        return torch.zeros_like(loss.detach())
    return loss
