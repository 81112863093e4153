"""The key of a sample in a cache: a hash of the model's fingerprint, the tokens up to the last aligned position, which
positions are aligned, the position ids if they are unusual, and the dtype of autocast if it is on. Padding and the
other rows of the batch do not matter.
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
    arguments: dict[str, Any], chosen: Selection, fingerprint: str, fills_cache: bool, autocast: torch.dtype | None
) -> list[tuple[bytes, Tensor]] | None:
    """(key, flat indices of the aligned positions) of each row that has aligned positions, in the order of the rows.
    None for a batch that cannot be cached: embeddings for tokens, masks with four dimensions or by type of layer.

    Args:
        arguments: those of the decoder call, by name.
        fills_cache: whether the decoder fills a key-value cache, see :func:`.decoder.fills_cache`.
        autocast: see :func:`autocast_dtype`.
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
        # without autocast nothing is added, so that caches of earlier releases stay valid
        digest = hashlib.sha256(f"{fingerprint}{'' if autocast is None else f' {autocast}'}".encode())
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part.long().numpy().tobytes())
        rows.append((digest.digest(), index))
    return rows


def autocast_dtype(arguments: dict[str, Any], weights: torch.device) -> torch.dtype | None:
    """The dtype in which autocast computes products where the decoder runs; None without autocast.

    Args:
        arguments: those of the decoder call, by name. If its token ids are on an accelerator, the decoder runs there,
            although its weights may wait on the CPU.
        weights: the device of the decoder's weights.
    """
    ids = arguments.get("input_ids")
    kind = weights.type if ids is None or ids.device.type == "cpu" else ids.device.type
    if kind == "meta":  # offloaded weights
        return None
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    if kind == "cpu":  # torch until 2.3 has a function for each kind of device
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
