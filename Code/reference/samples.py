"""The key of a sample in a cache: a hash of the model's fingerprint, the tokens up to the last aligned position, which
positions are aligned, and the position ids if they are unusual. Padding and the other rows of the batch do not matter.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from .. import copies
from ..eager import eager
from ..positions import Selection

# decoder arguments that the key covers; a batch with any other tensor cannot be cached
_COVERED = {"input_ids", "attention_mask", "position_ids", "cache_position"}


@eager
def samples(
    arguments: dict[str, Any], chosen: Selection, fingerprint: str, fills_cache: bool
) -> list[tuple[bytes, Tensor]] | None:
    """(key, flat indices of the aligned positions) of each row that has aligned positions, in the order of the rows.
    None for a batch that cannot be cached: embeddings for tokens, masks with four dimensions or by type of layer.

    Args:
        arguments: those of the decoder call, by name.
        fills_cache: whether the decoder fills a key-value cache, see :func:`.decoder.fills_cache`.
    """
    ids, mask, numbers = (arguments.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    tensors = {k for k, v in arguments.items() if v is not None and not isinstance(v, (bool, int, float, str))}
    if ids is None or not tensors <= _COVERED or not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
        return None
    if numbers is not None and numbers.dim() != 2:
        return None
    ids, mask, numbers = copies.on_cpu(ids.long(), mask, numbers)
    unmasked = mask is None
    mask = torch.ones_like(ids) if unmasked else mask
    rows = []
    for row in range(len(ids)):
        index = chosen.all_aligned[chosen.all_aligned // chosen.total == row]
        if not len(index):
            continue
        last = int(index[-1]) % chosen.total
        columns = mask[row, : last + 1].nonzero().squeeze(-1)
        parts = [ids[row, columns], torch.searchsorted(columns, index % chosen.total)]
        if len(set(mask[row, columns].tolist())) > 1:
            parts.append(mask[row, columns])
        own = columns if numbers is None else numbers[row, columns]
        own = own - own[0]
        if not torch.equal(own, torch.arange(len(own))):
            parts.append(own)
            if unmasked:  # then transformers takes restarts for documents, unless it fills a key-value cache
                parts.append(torch.tensor([fills_cache]))
        digest = hashlib.sha256(fingerprint.encode())
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part.long().numpy().tobytes())
        rows.append((digest.digest(), index))
    return rows
