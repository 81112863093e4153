"""Which base model is this? A hash of the weights that answer with LoRA off, the same with and without peft around
them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from . import guards

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CONFIG = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act", "use_sliding_window",
           "sliding_window", "max_window_layers")  # fmt: skip
_SAMPLE = 1024


class ShardedWeights(ValueError):
    """A weight is not whole in this process, so it cannot be hashed."""


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """32 hex digits for the base weights of a Qwen2ForCausalLM, its rotary frequencies and what in its config changes
    hidden states.

    Each tensor enters with its name, shape and dtype, the sum of its bit patterns as integers (every element, exact
    in any order, so the same on any device) and 1024 of its elements.

    Raises:
        ShardedWeights: the model is sharded (FSDP, ZeRO-3).
    """
    digest = hashlib.sha256()
    config = {name: getattr(model.config, name, None) for name in _CONFIG}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    tensors = {_plain(name): parameter for name, parameter in guards.base_parameters(model)}
    tensors.update((name, buffer) for name, buffer in model.model.named_buffers() if name.endswith("inv_freq"))
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}".encode())
        digest.update(_content(name, tensors[name]))
    return digest.hexdigest()[:32]


def _content(name: str, tensor: Tensor) -> bytes:
    if tensor.numel() == 0 or hasattr(tensor, "device_mesh"):
        raise ShardedWeights(f"{name} is not whole in this process")
    integers = tensor.detach().contiguous().view(-1).view(_INTEGERS[tensor.element_size()])
    sample = integers[:: max(1, len(integers) // _SAMPLE)][:_SAMPLE]
    return integers.sum(dtype=torch.int64).cpu().numpy().tobytes() + sample.cpu().numpy().tobytes()


def _plain(name: str) -> str:
    """The name that a parameter has without peft."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "original_module", "token_adapter"))
