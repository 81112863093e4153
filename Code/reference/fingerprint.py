"""A hash of the base model, that is of the model with LoRA off. It is the same with and without peft around it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from . import guards, switch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SMALL = 2**16  # elements
_COLUMNS = 4099  # a prime, so that the sums change if two rows of a weight are swapped

# Fields of a config that change no hidden state, those for generate() among them. Every other field enters the hash, so
# a setting of a later release is never left out. Each weight enters with its own dtype.
_GENERATION = GenerationConfig().to_dict()
_NO_STATE = {*_GENERATION, "_name_or_path", "name_or_path", "architectures", "auto_map", "dtype",
             "torch_dtype", "initializer_range", "return_dict", "selfaug", "tokenizer_class", "torchscript",
             "_attn_implementation", "attn_implementation", "_attn_implementation_autoset"}  # fmt: skip
# these implementations compute the same attention; an implementation of another name may compute anything
_SAME_ATTENTION = {None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"}


class ShardedWeights(ValueError):
    """A weight is not whole in this process, so it cannot be hashed."""


@torch.no_grad()
def fingerprint(model: Any) -> str:
    """32 hex digits that identify everything which the hidden states and the head of a model without LoRA depend on.

    This covers the config; the weights and buffers that a checkpoint would hold, also quantised ones; the rotary
    frequencies; the numbers that modules keep as plain attributes (scales, epsilons); and the classes of modules
    without weights, such as activations. It does not cover dropout, which the reference does not have, and hooks.

    Raises:
        ShardedWeights: the model is sharded (FSDP, ZeRO-3), or weights are offloaded.
    """
    digest = hashlib.sha256(json.dumps(_relevant(model.config.to_dict()), sort_keys=True, default=str).encode())
    digest.update(_attention(model.config).encode())
    facts: dict[str, Any] = {}
    for prefix, module in guards.base_modules(model):
        if isinstance(module, nn.modules.dropout._DropoutNd):
            continue
        own = {**_checkpoint(module), **_frequencies(module)}
        if not switch.is_adapter(module):
            own.update(_numbers(module))
            if not own and not any(module.children()):
                own["class"] = type(module).__qualname__
        facts.update((_plain(f"{prefix}{name}"), value) for name, value in own.items())
    for name in sorted(facts):
        digest.update(f"{name} ".encode())
        for part in _content(name, facts[name]):
            digest.update(part)
    return digest.hexdigest()[:32]


def marks(model: Any) -> tuple[Any, ...]:
    """What shows that weights or buffers of the base model have been written to, without a look at their values: the
    place in memory, the dtype and the version of each tensor that enters the fingerprint.

    PyTorch counts a version up at every write in place (an optimizer, ``load_state_dict``, ``add_`` under no_grad). It
    does not at ``parameter.data += …``, which leaves the place alone, too: that does not show.
    """
    found: list[Any] = []
    for _, module in guards.base_modules(model):
        found += [_mark(tensor) for tensor in module._parameters.values() if tensor is not None]
        for name, buffer in module._buffers.items():
            if buffer is not None and (name not in module._non_persistent_buffers_set or name.endswith("inv_freq")):
                found.append(_mark(buffer))
    return tuple(found)


def _mark(tensor: Tensor) -> Any:
    if hasattr(tensor, "__tensor_flatten__"):  # it consists of several tensors, and has no place of its own
        return tuple(_mark(getattr(tensor, attribute)) for attribute in tensor.__tensor_flatten__()[0])
    version = 0 if tensor.is_inference() else tensor._version  # an inference tensor has no version
    return tensor.data_ptr(), tensor.dtype, version


def _relevant(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config, and of the configs in it, that may change hidden states."""
    return {
        name: _relevant(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if name not in _NO_STATE and "dropout" not in str(name)
    }


def _attention(config: Any) -> str:
    """The implementation of attention if it matters, else "". It matters if it is not transformers' own. With a sliding
    window it always matters, because some releases leave the window out of some implementations.
    """
    name = getattr(config, "_attn_implementation", None)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return str(name) if kinds or getattr(config, "use_sliding_window", False) or name not in _SAME_ATTENTION else ""


def _checkpoint(module: nn.Module) -> dict[str, Any]:
    """What a checkpoint holds of this module without its children: weights, buffers, and what quantised layers add."""
    saved: dict[str, Any] = {}
    module._save_to_state_dict(saved, "", keep_vars=True)
    return saved


def _frequencies(module: nn.Module) -> dict[str, Any]:
    """The rotary frequencies of a module, which no checkpoint holds."""
    return {name: value for name, value in module._buffers.items() if name.endswith("inv_freq")}


def _numbers(module: nn.Module) -> dict[str, Any]:
    """The numbers among the public attributes of a module: scales, epsilons, windows."""
    return {
        name: value
        for name, value in vars(module).items()
        if type(value) in (int, float) and not name.startswith("_") and "dropout" not in name and name not in _NO_NUMBER
    }


_NO_NUMBER = {"max_seq_len_cached", "padding_idx"}  # the longest batch so far; the token without a gradient


def _content(name: str, value: Any) -> Iterator[bytes]:
    """The shape, dtype and content of a tensor, for the hash. A large tensor enters as the sums of the columns of a
    table: its bit patterns are summed as integers, so every element counts and the sums are the same on any device.
    """
    if not isinstance(value, Tensor):
        yield repr(value).encode()
        return
    if value.numel() == 0 or value.is_meta or hasattr(value, "device_mesh"):
        raise ShardedWeights(f"{name} is not whole in this process")
    yield f"{tuple(value.shape)} {value.dtype}".encode()
    if hasattr(value, "__tensor_flatten__"):  # a quantised weight that consists of several tensors
        inner, settings = value.__tensor_flatten__()
        yield repr(settings).encode()
        for attribute in inner:
            yield from _content(f"{name}.{attribute}", getattr(value, attribute))
        return
    whole = value.detach().contiguous()
    integers = whole.view(-1).view(_INTEGERS[whole.element_size()])
    if len(integers) <= _SMALL:
        yield integers.cpu().numpy().tobytes()
        return
    rows = len(integers) // _COLUMNS
    table, rest = integers[: rows * _COLUMNS].view(rows, _COLUMNS), integers[rows * _COLUMNS :]
    for part in (table.sum(0, dtype=torch.int64), rest):
        yield part.cpu().numpy().tobytes()


def _plain(name: str) -> str:
    """The name of a parameter without peft."""
    return ".".join(part for part in name.split(".") if part not in ("base_layer", "original_module", "token_adapter"))
