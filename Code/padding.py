"""Which tokens of a batch are real and which are padding, from its attention mask or, without one, from its tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .labels import IGNORE_INDEX


def real_tokens(attention_mask: Any, labels: Tensor) -> Tensor:
    """(B, T) bool, False at padding. Without a mask every token is real.

    Args:
        attention_mask: (B, T) with 0 at padding and any other number elsewhere (packed rows number their documents 1,
            2, 3); or (B, 1 or heads, T, T), bool (True: may attend) or float that is added to the scores (0: may
            attend); or a ``BlockMask`` of flex attention; or a dict of such masks by type of layer, as in transformers
            5. A real token attends to itself, so the diagonal of a mask shows the real tokens.
        labels: (B, T).

    Raises:
        ValueError: ``attention_mask`` is none of these, or has another length than the labels.
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


def numbers(attention_mask: Any) -> Tensor | None:
    """The (B, T) mask that may number the documents of packed rows, see :func:`real_tokens`; None for another mask."""
    mask = any_mask(attention_mask)
    return mask if isinstance(mask, Tensor) and mask.dim() == 2 and mask.dtype != torch.bool else None


def any_mask(attention_mask: Any) -> Any:
    """The mask itself. From a dict of masks by type of layer, the one of full attention or else the first."""
    if not isinstance(attention_mask, Mapping):
        return attention_mask
    masks = {kind: mask for kind, mask in attention_mask.items() if mask is not None}
    return masks.get("full_attention", next(iter(masks.values()), None))


def may_attend(mask: Tensor) -> Tensor:
    """Bool of the same shape as a 4-D mask, True where a query may see a key.

    The mask has bools, integers, or floats that are added to the scores. A float that hides a key is far below 0; a
    bias on a key that is seen (ALiBi) is not.
    """
    if not mask.is_floating_point():
        return mask != 0
    lowest = mask.amin()
    return (mask > lowest / 2) | (lowest > -1e3)


def _attended(attends: Tensor) -> Tensor:
    """(B, T) bool, True at real tokens, from (B, T, T) bool: whether token t attends to token s.

    A padding token does not attend to itself, with one exception: SDPA cannot have a row without any True, so for SDPA
    transformers lets padding attend to everything. No other token attends to padding.
    """
    opened = attends.all(-1)
    opened[:, -1] = False  # the last token attends to everything under any causal mask
    by_others = (attends & ~opened.unsqueeze(-1)).any(-2)
    return attends.diagonal(dim1=-2, dim2=-1) & (by_others | ~opened)


def _block_mask_diagonal(mask: Any, labels: Tensor) -> Tensor:
    """(B, T) bool: whether each token of ``labels`` (B, T) attends to itself under a BlockMask of flex attention."""
    rows, T, device = mask.shape[0], min(labels.shape[1], *mask.shape[-2:]), mask.kv_num_blocks.device
    b = torch.arange(rows, device=device).repeat_interleave(T)
    t = torch.arange(T, device=device).repeat(rows)
    attends: Tensor = torch.vmap(mask.mask_mod)(b, torch.zeros_like(b), t, t)
    return attends.view(rows, T).expand(len(labels), T)


def without_padding(labels: Tensor, input_ids: Tensor | None, pad_tokens: Collection[int]) -> Tensor:
    """(B, T) bool, False at padding, for a batch without an attention mask.

    Padding is a run of one of ``pad_tokens`` without labels at either end of a row. The last token of a run on the left
    counts as real: it may be the beginning-of-text token of a model that pads with that token.
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
    """The length of the longest run of equal tokens without labels at the end of a row that has labels before.

    Without a mask such a run may be padding, with a token that neither the model nor the tokenizer calls a pad token.
    """
    tail = (input_ids == input_ids[:, -1:]) & (labels == IGNORE_INDEX) & real
    length = tail.flip(-1).cumprod(-1).sum(-1)
    supervised = (labels != IGNORE_INDEX).any(-1)
    return int((length * supervised).max())
