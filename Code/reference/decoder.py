"""The pass of the decoder with LoRA off: what it is called with, and how much of the batch it has to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .. import calls
from ..eager import eager, eager_around
from ..family import decoder_of
from ..padding import may_attend
from .switch import NOTHING, Kept, all_modules, switched_off

# decoder arguments with a position axis, and that axis; a call with any other tensor argument is not shortened
_POSITION_AXES = {"input_ids": 1, "inputs_embeds": 1, "position_ids": -1, "attention_mask": -1, "cache_position": 0}
# rotary embeddings whose frequencies do not change with the length of the batch ("dynamic" and "longrope" do)
_FIXED_ROPE = {"default", "linear", "yarn", "llama3", "proportional", "mrope"}


@eager
def fills_cache(decoder: Any, arguments: dict[str, Any]) -> bool:
    """Whether the pass fills a key-value cache.

    Without a mask, transformers makes another one where there is a key-value cache: packed documents are told apart
    by their position ids only where there is none. The reference has to see what the tuned pass sees, so it fills a
    cache (of its own) if that one does.
    """
    if arguments.get("attention_mask") is not None:
        return False
    if any(calls.is_cache(value) for value in arguments.values()):
        return True
    if getattr(decoder, "gradient_checkpointing", False) and decoder.training:  # the tuned pass goes without
        return False
    wanted = arguments.get("use_cache")
    return bool(decoder.config.use_cache if wanted is None else wanted)


@eager
def reads_whole_length(decoder: Any) -> bool:
    """Whether a hidden state depends on how many positions come after it, even under a causal mask.

    It does where the rotary frequencies follow the length of the batch (``rope_type`` "dynamic", "longrope"; a kind
    that is not known here is taken for one of these), and in a decoder that was made bidirectional.
    """
    if getattr(decoder.config, "is_causal", True) is False:
        return True
    for module in all_modules(decoder):
        if vars(module).get("is_causal") is False:
            return True
        kinds = vars(module).get("rope_type", "default")
        kinds = kinds.values() if isinstance(kinds, Mapping) else [kinds]
        if not _FIXED_ROPE.issuperset(kinds):
            return True
    return False


@eager_around
def hidden_states(model: Any, arguments: dict[str, Any], length: int, kept: Kept = NOTHING) -> Tensor:
    """(B, length or T, H): the decoder's last hidden states at the first ``length`` positions, by the reference.

    ``arguments`` are those of the tuned pass's decoder call; ``kept`` as in :func:`.switch.switched_off`. Later
    positions are not computed where a causal decoder allows that and every argument can be cut. The caller's key-value
    cache is never touched.
    """
    decoder = decoder_of(model)
    arguments = {
        **{name: value for name, value in arguments.items() if not calls.is_cache(value)},
        "use_cache": fills_cache(decoder, arguments),
    }
    for unwanted in ("output_hidden_states", "output_attentions"):
        if arguments.get(unwanted):
            arguments[unwanted] = False
    if not reads_whole_length(decoder):
        arguments = _cut(arguments, length)
    with switched_off(model, kept):
        hidden: Tensor = decoder(**arguments)[0]
    return hidden


def _cut(arguments: dict[str, Any], length: int) -> dict[str, Any]:
    """The arguments of the first ``length`` positions; all, where one cannot be cut or the mask looks beyond them."""
    tensors = {
        name: value
        for name, value in arguments.items()
        if value is not None and not isinstance(value, (bool, int, float, str))
    }
    if not all(name in _POSITION_AXES and isinstance(value, Tensor) for name, value in tensors.items()):
        return arguments
    mask = arguments.get("attention_mask")
    if mask is not None and mask.dim() == 4:
        if bool(may_attend(mask)[..., :length, length:].any()):  # prefix LM: prompts see it all
            return arguments
        tensors["attention_mask"] = mask[..., : min(length, mask.shape[-2]), :]
    return {
        **arguments,
        **{
            name: value.narrow(_POSITION_AXES[name], 0, min(length, value.shape[_POSITION_AXES[name]]))
            for name, value in tensors.items()
        },
    }
