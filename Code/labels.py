"""The labels that a call of ``forward`` was given, in either form, and whether the call holds whole sequences.

``labels`` are un-shifted: the label at t is that of token t. ``shift_labels`` (context parallelism, Ulysses, x/y
pretraining) are shifted already: the label at t is that of token t + 1, which the logits at t are scored against. A
trainer gives either, both, or the shifted ones under both names.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import Tensor

from . import positions


def given(call: dict[str, Any]) -> Tensor | None:
    """The labels in ``call``, in whichever form; None if there are none."""
    labels = call.get("labels")
    return call.get("shift_labels") if labels is None else labels


def without_ignored(model: Any, call: dict[str, Any]) -> dict[str, Any]:
    """``call`` of transformers' own forward, without ``shift_labels`` if its loss does not know them (until 4.49)."""
    loss_function = getattr(model, "loss_function", None)
    if "shift_labels" not in call or loss_function is None:
        return call
    if "shift_labels" in inspect.signature(loss_function).parameters:
        return call
    return {name: value for name, value in call.items() if name != "shift_labels"}


def both_forms(labels: Tensor, call: dict[str, Any], kept: int | Tensor, total: int) -> tuple[Tensor, Tensor | None]:
    """(own, target) labels of all positions, both (B, total) long: un-shifted, and what the logits at t are scored
    against; None for the latter where that is the next label.

    Args:
        labels: of the call or of its trainer, un-shifted unless the call has ``shift_labels``.
        kept: the call's ``logits_to_keep``; the labels may be cut to it.
        total: T.
    """
    shifted = call.get("shift_labels")
    if shifted is None:
        return positions.full_labels(labels, kept, total), None
    targets = positions.full_targets(shifted, kept, total)
    first = targets[:, :1]  # what the first token's own label was is lost: taken for what its target is
    if labels.shape == targets.shape and torch.equal(labels[:, 1:], targets[:, :-1].to(labels.device)):
        first = labels[:, :1].to(targets.device)  # un-shifted ones were given, too
    return torch.cat((first, targets[:, :-1]), 1), targets


def split_by(call: dict[str, Any]) -> str | None:
    """Why this call may hold a part of each sequence only, because processes share it; None if it holds the whole.

    The answer follows from what is set up, not from the data, so that every process finds the same one.
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
    return sys.modules.get(name)  # who has not imported it does not use it


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
        found = getattr(getattr(_module(name), "sequence_parallel", None), "world_size", None)
        if isinstance(found, int):
            return found
    return 1


def _axolotl() -> int:
    for name in ("axolotl.monkeypatch.ring_attn.patch", "axolotl.monkeypatch.ring_attn"):
        group = getattr(_module(name), "RING_ATTN_GROUP", None)
        if group is not None:
            return int(torch.distributed.get_world_size(group))
    return 1
