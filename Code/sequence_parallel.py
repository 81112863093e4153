"""Whether processes share each sequence (context or sequence parallelism), so that a call has only a part of it."""

from __future__ import annotations

import sys
from typing import Any

import torch


def why_split(call: dict[str, Any]) -> str | None:
    """Why this call may have only a part of each sequence, because processes share it. None if it has the whole.

    The answer follows from what is set up, not from the data, so every process gives the same one.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_world_size() == 1:
        return None
    known = (
        ("accelerate's parallelism_config (cp_size or sp_size)", _accelerate),
        ("torch's context_parallel", _context_parallel),
        ("DeepSpeed's sequence parallelism", _deepspeed),
        ("ms-swift's sequence parallelism", _swift),
        ("axolotl's context parallelism", _axolotl),
    )
    for name, size in known:
        if size() > 1:
            return f"{name} splits each sequence between processes"
    if call.get("shift_labels") is not None:
        return "shift_labels are given in a run of several processes, where each may hold a part of a sequence only"
    return None


def _module(name: str) -> Any:
    return sys.modules.get(name)  # a library that is not imported is not in use


def _accelerate() -> int:
    state = getattr(_module("accelerate.state"), "AcceleratorState", None)
    plan = None if state is None else state._shared_state.get("parallelism_config")
    return max(1, getattr(plan, "cp_size", None) or 1) * max(1, getattr(plan, "sp_size", None) or 1)


def _context_parallel() -> int:
    attention = torch.nn.functional.scaled_dot_product_attention
    return 2 if str(getattr(attention, "__module__", "")).startswith("torch.distributed.") else 1


def _deepspeed() -> int:
    size = getattr(_module("deepspeed.utils.groups"), "_get_sequence_parallel_world_size", None)
    return 1 if size is None else size() or 1


def _swift() -> int:
    for name in ("swift.sequence_parallel", "swift.trainers.sequence_parallel"):
        size = getattr(getattr(_module(name), "sequence_parallel", None), "world_size", None)
        if isinstance(size, int):
            return size
    return 1


def _axolotl() -> int:
    for name in ("axolotl.monkeypatch.ring_attn.patch", "axolotl.monkeypatch.ring_attn"):
        group = getattr(_module(name), "RING_ATTN_GROUP", None)
        if group is not None:
            return int(torch.distributed.get_world_size(group))
    return 1
