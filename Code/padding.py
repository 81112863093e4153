"""Which tokens of a batch are real and which are padding, from its attention mask or, without one, from its tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .labels import IGNORE_INDEX


def real_tokens(attention_mask: Any, labels: Tensor) -> Tensor:
    """(B, T) bool, False at padding; without a mask all are real.

    ``attention_mask`` may be (B, T) with 0 at padding and any other number elsewhere (packed rows number their
    documents 1, 2, 3), (B, 1 or heads, T, T): bool (True: may attend) or additive float (0: may attend), or a
    ``BlockMask`` of flex attention. A real token attends to itself, so the diagonal tells. Of masks by type of layer,
    as transformers 5 takes them, any one tells.

    Raises:
        ValueError: what is no such mask, or one of another length than the labels.
    """
    mask = any_mask(attention_mask)
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


def any_mask(attention_mask: Any) -> Any:
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
    attends: Tensor = torch.vmap(mask.mask_mod)(b, torch.zeros_like(b), t, t)
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
