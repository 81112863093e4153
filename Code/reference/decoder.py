"""The decoder pass with LoRA off: its arguments, and how many positions of the batch it has to compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .. import calls
from ..eager import eager, eager_around
from ..family import decoder_of, text_part
from ..padding import may_attend
from .switch import NOTHING, Kept, all_modules, switched_off

# the position axis of each decoder argument that has one; a call with any other tensor argument is not shortened
_POSITION_AXES = {"input_ids": 1, "inputs_embeds": 1, "position_ids": -1, "attention_mask": -1, "cache_position": 0}
# rotary embeddings whose frequencies do not depend on the length of the batch; those of "dynamic" and "longrope" do
_FIXED_ROPE = {"default", "linear", "yarn", "llama3", "proportional", "mrope"}


@eager
def fills_cache(decoder: Any, arguments: dict[str, Any]) -> bool:
    """Whether the pass fills a key-value cache.

    Without a mask from the caller, the mask that transformers makes depends on a key-value cache: only without a cache
    does it tell packed documents apart by their position ids. The reference has to attend as the tuned pass does, so it
    fills a cache of its own if the tuned pass fills one.
    """
    if arguments.get("attention_mask") is not None:
        return False
    if any(calls.is_cache(value) for value in arguments.values()):
        return True
    text = text_part(decoder)
    if getattr(text, "gradient_checkpointing", False) and text.training:  # the tuned pass has no cache then
        return False
    use_cache = arguments.get("use_cache")
    return bool(text.config.use_cache if use_cache is None else use_cache)


@eager
def reads_whole_length(decoder: Any) -> bool:
    """Whether a hidden state depends on the number of positions after it, even under a causal mask.

    This is so if the rotary frequencies depend on the length of the batch (``rope_type`` "dynamic" and "longrope"; an
    unknown type counts as one of these), and in a decoder that was made bidirectional.
    """
    text = text_part(decoder)
    if getattr(text.config, "is_causal", True) is False:
        return True
    for module in all_modules(text):
        if vars(module).get("is_causal") is False:
            return True
        kinds = vars(module).get("rope_type", "default")
        kinds = kinds.values() if isinstance(kinds, Mapping) else [kinds]
        if not _FIXED_ROPE.issuperset(kinds):
            return True
    return False


@eager_around
def hidden_states(model: Any, arguments: dict[str, Any], length: int, kept: Kept = NOTHING) -> Tensor:
    """(B, length or T, H): the reference's last hidden states at the first ``length`` positions.

    Later positions are left out if the decoder is causal and every argument can be cut. The caller's key-value cache is
    never touched.

    Args:
        arguments: those of the tuned pass's decoder call, by name.
        kept: see :func:`.switch.switched_off`.
    """
    decoder = decoder_of(model)
    arguments = {
        **{name: value for name, value in arguments.items() if not calls.is_cache(value)},
        "use_cache": fills_cache(decoder, arguments),
    }
    for extra_output in ("output_hidden_states", "output_attentions"):
        if arguments.get(extra_output):
            arguments[extra_output] = False
    if not reads_whole_length(decoder):
        arguments = _cut(arguments, length)
    with switched_off(model, kept):
        hidden: Tensor = decoder(**arguments)[0]
    return hidden


def _cut(arguments: dict[str, Any], length: int) -> dict[str, Any]:
    """The arguments for the first ``length`` positions; all if one cannot be cut or a position attends beyond them."""
    tensors = {
        name: value
        for name, value in arguments.items()
        if value is not None and not isinstance(value, (bool, int, float, str))
    }
    if not all(name in _POSITION_AXES and isinstance(value, Tensor) for name, value in tensors.items()):
        return arguments
    mask = arguments.get("attention_mask")
    if mask is not None and mask.dim() == 4:
        if bool(may_attend(mask)[..., :length, length:].any()):  # a prefix LM: the prompt attends to all
            return arguments
        tensors["attention_mask"] = mask[..., : min(length, mask.shape[-2]), :]
    return {
        **arguments,
        **{
            name: value.narrow(_POSITION_AXES[name], 0, min(length, value.shape[_POSITION_AXES[name]]))
            for name, value in tensors.items()
        },
    }
