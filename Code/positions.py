"""Which positions of a batch are supervised and which are aligned, to which row each belongs, and the weight of its KL.

All masks are (B, T) bool. A position is the one *whose logits are used*: the logits at t predict token t + 1.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import copies, padding
from .labels import IGNORE_INDEX, shifted


def aligned(labels: Tensor, supervised: Tensor, real: Tensor, positions: str) -> Tensor:
    """(B, T) bool: where the tuned model is held to the base model. ``supervised``: (B, T) bool, where NLL is computed.

    positions:
        "input": ``labels == -100``, un-shifted, as in the authors' code. It includes the last prompt position, whose
            logits predict the first response token and which NLL trains too.
        "strict-input": the same without positions that NLL trains.
        "output": the positions that NLL trains.
        "all": every real token.
    Padding is never aligned (the authors' code counts it).
    """
    chosen = {
        "input": labels == IGNORE_INDEX,
        "strict-input": (labels == IGNORE_INDEX) & ~supervised,
        "output": supervised,
        "all": torch.ones_like(real),
    }[positions]
    return chosen & real


def rows(labels: Tensor, position_ids: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """(B, T) long: a number for the row that each position belongs to, from 0.

    A row is a row of the batch. In a packed batch a document is a row, so that packing does not change what "sequence"
    reduction means: ``position_ids`` restart at each document, or the (B, T) ``mask`` numbers the documents, with 0 at
    padding. Left padding has constant position ids, so each of its positions is a row of its own; no token in these
    rows counts.
    """
    B, T = labels.shape
    starts = torch.zeros(B, T, dtype=torch.bool, device=labels.device)
    starts[:, 0] = True
    if position_ids is not None and position_ids.dim() == 2:
        ids = position_ids.expand(B, T)
        starts[:, 1:] |= ids[:, 1:] != ids[:, :-1] + 1
    if mask is not None and T:
        mask, at = mask.expand(B, T), torch.arange(T, device=mask.device)
        number = mask.gather(1, torch.where(mask != 0, at, 0).cummax(1).values)  # at padding: that of the token before
        starts[:, 1:] |= (number[:, 1:] != number[:, :-1]) & (number[:, :-1] != 0)
    return starts.flatten().cumsum(0).view(B, T) - 1


def kl_weights(
    aligned: Tensor, supervised: Tensor, row: Tensor, reduction: str, anchor_tokens: float | None = None
) -> Tensor:
    """(B, T) float: weights w that make ``sum(w * KL) / N`` the reduction's mean, 0 where nothing is aligned.

    N is the number of supervised tokens that NLL is divided by: the micro-batch's own, or ``num_items_in_batch``.

        token:     w_t = supervised / aligned                    (both counted over the micro-batch)
        sequence:  w_t = supervised in row(t) / aligned in row(t)

    With "sequence", a global batch has the same gradient however its rows are split into micro-batches and processes.

    Args:
        anchor_tokens: then a row without a supervised token is an anchor, and w_t = anchor_tokens / aligned in row(t)
            with either reduction: its KL weighs as that of a row with so many supervised tokens, and the other rows'
            as if it were not there. None: no row is an anchor.
    """
    count = int(row.max()) + 1

    def in_rows(mask: Tensor, row: Tensor) -> Tensor:
        zeros = torch.zeros(count, dtype=torch.double, device=row.device)
        return zeros.scatter_add(0, row[mask], torch.ones_like(row[mask], dtype=torch.double))

    weight = torch.zeros(row.shape, dtype=torch.double, device=row.device)
    if anchor_tokens is not None:
        anchors = aligned & (in_rows(supervised, row) == 0)[row]
        weight[anchors] = anchor_tokens / in_rows(anchors, row)[row[anchors]]
        aligned = aligned & ~anchors
    if reduction == "token":
        row = torch.zeros_like(row)
    return weight + (in_rows(supervised, row) / in_rows(aligned, row).clamp(min=1))[row] * aligned


def rows_with(chosen: Tensor, position_ids: Tensor | None, mask: Tensor | None = None) -> int:
    """How many rows have a position in the (B, T) ``chosen``, see :func:`rows`."""
    return len(rows(chosen, position_ids, mask)[chosen].unique())


def length_of(index: Tensor, total: int) -> int:
    """How many columns of a (B, ``total``) batch hold the positions ``index`` (n,) of the flattened batch."""
    return int((index % total).max()) + 1 if len(index) else 0


def at(states: Tensor, index: Tensor, total: int) -> Tensor:
    """(n, F): of states (B, L, F) those at ``index`` (n,) of the flattened (B * ``total``) batch, on the same device. L
    may be less than ``total``: then the states are those of the first L columns.
    """
    return states.flatten(0, 1)[index // total * states.shape[1] + index % total]


@dataclass
class Placed:
    """The tensors of a :class:`Selection` on a device."""

    index: Tensor  # (P,) long
    next_labels: Tensor  # (P,) long
    weights: Tensor  # (A, 2) float32 or float64: kl_weight and stands_for


@dataclass
class Selection:
    """The positions that take part in the loss of one step, by their index in the flattened (B * T) batch. Aligned
    positions come first.
    """

    index: Tensor  # (P,) long
    next_labels: Tensor  # (P,) long, IGNORE_INDEX where NLL takes no part
    kl_weight: Tensor  # (A,) double, the weight of each KL in the sum that NLL is a part of, see `weighted`
    stands_for: Tensor  # (A,) double, how many aligned positions each is counted as: 1 without sampling
    supervised: int
    aligned: int  # A, after sampling
    all_aligned: Tensor  # (N,) long, ascending, before sampling
    counted: float  # the divisor of sums over tokens when the trainer gives no num_items_in_batch: the supervised
    # tokens or, where there are none, what makes the KL a mean
    total: int  # T
    tail: int  # see padding.unexplained_tail
    rows: int  # B
    anchors: int  # how many rows are anchors; 0 without SELFAUG_ANCHORS
    _placed: dict[Any, Placed] = field(init=False, repr=False, compare=False, default_factory=dict)

    def weighted(self, factor: float) -> Selection:
        """The same with every KL's weight multiplied by ``factor``."""
        return replace(self, kl_weight=factor * self.kl_weight)

    def beside(self, hidden: Tensor) -> Placed:
        """What a step computes with on the device of ``hidden``, in the dtype that the loss of such states has. It is
        copied once, however often it is asked for.
        """
        wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        key = (hidden.device, wide)
        if key not in self._placed:
            weights = torch.stack((self.kl_weight, self.stands_for), -1).to(wide)
            self._placed[key] = Placed(*copies.on_device(hidden.device, self.index, self.next_labels, weights))
        return self._placed[key]

    @property
    def length(self) -> int:
        """How many columns of the batch hold all aligned positions."""
        return length_of(self.index[: self.aligned], self.total)

    def aligned_only(self) -> Selection:
        """The same without NLL, for a step whose NLL another forward has computed."""
        index = self.index[: self.aligned]
        return replace(self, index=index, next_labels=torch.full_like(index, IGNORE_INDEX))

    def divisor(self, num_items: Any, device: torch.device) -> float | Tensor:
        """The divisor of sums over tokens: the trainer's ``num_items_in_batch`` or, without it, ``counted``. A 0
        becomes 1: where no token counts, the sum is 0, too.
        """
        if isinstance(num_items, Tensor):
            num_items = num_items.to(device)
            return torch.where(num_items == 0, torch.ones_like(num_items), num_items)
        divisor: float = (self.counted if num_items is None else num_items) or 1
        return divisor

    def without_nan(self, loss: Tensor) -> Tensor:
        """A loss that another forward computed; 0 if it is NaN because no token is supervised."""
        if self.supervised == 0 and bool(loss.detach().isnan().any()):
            return torch.zeros_like(loss.detach())
        return loss

    def next_labels_at(self, logits_to_keep: int | Tensor) -> Tensor:
        """(B, K) long: the next labels at the positions in ``logits_to_keep``. An int k is the last k, and 0 is all."""
        next_labels = torch.full((self.rows * self.total,), IGNORE_INDEX)
        next_labels[self.index] = self.next_labels
        columns = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep.cpu()
        return next_labels.view(self.rows, self.total)[:, columns]


def select(
    labels: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    positions: str,
    reduction: str,
    divided_by_batch: bool,
    input_ids: Tensor | None = None,
    pad_tokens: Collection[int] = (),
    next_labels: Tensor | None = None,
    anchors: bool = False,
    anchor_tokens: float | None = None,
) -> Selection:
    """Select the positions of a batch, on the CPU. Masks on one device are copied together. Only here does a step wait
    for the device; the selection goes back in one copy, :meth:`Selection.beside`, which waits for nothing.

    Args:
        divided_by_batch: the trainer gives ``num_items_in_batch``. Then a micro-batch without a supervised token weighs
            nothing. Otherwise such a micro-batch (whose stock loss is NaN) keeps its KL as a plain mean.
        input_ids, pad_tokens: used to find padding if there is no mask, see :func:`.padding.without_padding`.
        next_labels: (B, T) long, if it is known; by default ``labels`` shifted by one.
        anchors: a row without labels is aligned at all its tokens, and is an anchor, see :func:`kl_weights`.
        anchor_tokens: the supervised tokens in a mean row with labels of the global batch, see
            :mod:`.trainers.anchors`. None, and where the trainer does not divide by that batch: those of this
            micro-batch. In a micro-batch of anchors alone, the loss is then the mean of their KLs.
    """
    if position_ids is not None and position_ids.dim() != 2:
        position_ids = None
    unmasked = padding.any_mask(attention_mask) is None
    mask = None if unmasked else padding.real_tokens(attention_mask, labels)
    ids = input_ids if unmasked and input_ids is not None and not input_ids.is_meta else None
    numbers = padding.numbers(attention_mask)
    labels, mask, position_ids, ids, next_labels, numbers = copies.on_cpu(
        labels, mask, position_ids, ids, next_labels, numbers
    )
    real = padding.without_padding(labels, ids, pad_tokens) if unmasked else mask != 0
    next_labels = shifted(labels) if next_labels is None else next_labels
    supervised = next_labels != IGNORE_INDEX
    chosen, row = aligned(labels, supervised, real, positions), rows(labels, position_ids, numbers)
    in_anchor = real & ~torch.isin(row, row[supervised]) if anchors else torch.zeros_like(real)  # (B, T)
    chosen = chosen | in_anchor
    counted = supervised if anchors or divided_by_batch or supervised.any() else chosen
    if not anchors:
        anchor_tokens = None
    elif anchor_tokens is None or not divided_by_batch:
        own = int(supervised.sum()) / max(1, len(row[supervised].unique()))
        anchor_tokens = own or (0 if divided_by_batch else 1)  # anchors alone: their mean, whatever the number
    weight = kl_weights(chosen, counted, row, reduction, anchor_tokens)
    all_aligned = chosen.flatten().nonzero().squeeze(-1)
    index = torch.cat((all_aligned, (supervised & ~chosen).flatten().nonzero().squeeze(-1)))
    return Selection(
        index=index,
        next_labels=next_labels.flatten()[index],
        kl_weight=weight.flatten()[all_aligned],
        stands_for=torch.ones(len(all_aligned), dtype=torch.double),
        supervised=int(supervised.sum()),
        aligned=len(all_aligned),
        all_aligned=all_aligned,
        counted=int(supervised.sum()) or float(weight.sum()) or 1,
        total=labels.shape[1],
        tail=0 if ids is None else padding.unexplained_tail(labels, ids, real),
        rows=labels.shape[0],
        anchors=len(row[in_anchor].unique()),
    )
