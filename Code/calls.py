"""A call of ``forward``: its arguments by name, those for the decoder, and whether SelfAug can act in it."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from . import family, sequence_parallel
from .eager import eager
from .labels import logits_to_keep

# arguments of a causal language model's forward that its decoder does not take
_NOT_FOR_THE_DECODER = {
    "labels",
    "shift_labels",
    "logits_to_keep",
    "num_logits_to_keep",
    "num_items_in_batch",
    "return_dict",
}
CACHES = {"past_key_values", "cache"}
# Arguments with which stock's loss is the NLL of the labels. One that is not named here may add to the loss.
PLAIN = {"input_ids", "attention_mask", "position_ids", *CACHES, "inputs_embeds", "labels", "shift_labels",
         "use_cache", "output_attentions", "output_hidden_states", "return_dict", "cache_position", "logits_to_keep",
         "num_logits_to_keep", "num_items_in_batch", "per_layer_inputs", "head_mask",
         "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}  # fmt: skip
# Those with which stock's own forward makes the loss: one that may add to the loss, and what models of images and text
# take beside text, which decoders get as it is.
STOCK_LOSS = {"output_router_logits", "token_type_ids", "mm_token_type_ids", "mm_encoder_outputs", "pixel_values",
              "pixel_values_videos", "input_features", "input_features_mask", "image_position_ids",
              "video_position_ids", "num_frames_per_video", "image_sizes", "image_grid_thw", "video_grid_thw",
              "second_per_grid_ts", "rope_deltas", "vision_feature_layer",
              "vision_feature_select_strategy"}  # fmt: skip


@eager
def by_name(forward: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the call by name, also those that ``forward`` takes as ``**kwargs``. Without defaults."""
    signature = _signature(forward)
    try:
        arguments = dict(signature.bind_partial(model, *args, **kwargs).arguments)
    except TypeError:  # the call itself will raise it
        return {}
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    arguments.pop(next(iter(signature.parameters)), None)  # self
    return arguments


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    signature = _SIGNATURES.get(function)
    if signature is None:
        signature = _SIGNATURES[function] = inspect.signature(function)
    return signature


# weak keys, because a forward that was put on an instance may hold its model
_SIGNATURES: weakref.WeakKeyDictionary[Callable[..., Any], inspect.Signature] = weakref.WeakKeyDictionary()


@eager
def obstacle(call: dict[str, Any]) -> tuple[str, str] | None:
    """(why SelfAug cannot act in this call with labels, what the user may do about it); None if it can."""
    split = sequence_parallel.why_split(call)
    if split is not None:
        reason = f"{split}, and the KL's mean needs the whole one"
        return reason, "Give each process whole sequences, with labels that are not shifted"
    if has_past(call):
        reason = "the model was called with labels and a filled key-value cache, which no reference pass can share"
        return reason, "Call the model without past_key_values where it trains"
    return None


@eager
def is_plain(model: Any, call: dict[str, Any]) -> bool:
    """Whether stock ``forward`` would compute NLL over all positions and nothing else, as the chunked loss does."""
    kept = logits_to_keep(call)
    loss_function = getattr(model, "loss_function", None)
    return (
        call.get("return_dict") is not False
        and getattr(model.config, "return_dict", True)
        and isinstance(kept, int)
        and kept == 0
        and set(call) <= PLAIN
        and (loss_function is None or _is_stock_loss(loss_function))
        and family.traits(model).nll
        and not (family.traits(model).fields and call.get("output_hidden_states"))  # in an order of the family's own
    )


def _is_stock_loss(function: Any) -> bool:
    module, name = getattr(function, "__module__", ""), getattr(function, "__name__", "")
    return str(module).startswith("transformers.") and name == "ForCausalLMLoss"


def is_cache(value: Any) -> bool:
    """Whether ``value`` is a key-value cache: a ``Cache`` of transformers, an object that counts its positions in the
    same way, or the tuples of old releases. The name of the argument differs between releases.
    """
    if isinstance(value, (tuple, list)):
        return len(value) > 0 and isinstance(value[0], (tuple, list))
    return isinstance(value, Cache) or hasattr(value, "get_seq_length")


@eager
def has_past(call: dict[str, Any]) -> bool:
    """Whether the call has a key-value cache that is not empty."""
    return any(_is_filled(value) for value in call.values() if is_cache(value))


def _is_filled(cache: Any) -> bool:
    if isinstance(cache, (tuple, list)):
        return True
    try:
        return bool(cache.get_seq_length() > 0)
    except ValueError:  # of layers without keys and values, which do not count positions: nobody can tell
        return True


def _class_forward(decoder: nn.Module) -> Callable[..., Any]:
    """``forward`` of the decoder's class or, if ``torch.compile`` wraps the decoder, of the module inside."""
    cls: Any = type(getattr(decoder, "_orig_mod", decoder))
    forward: Callable[..., Any] = cls.forward
    return forward


@eager
def decoder_arguments(decoder: nn.Module, call: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the call that stock ``forward`` passes to its decoder."""
    parameters = _signature(_class_forward(decoder)).parameters.values()
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    names = {parameter.name for parameter in parameters}
    return {k: v for k, v in call.items() if k not in _NOT_FOR_THE_DECODER and (takes_any or k in names)}


@contextmanager
def decoder_calls(decoder: nn.Module) -> Iterator[list[tuple[dict[str, Any], Tensor]]]:
    """A list that gets (arguments by name, last hidden states (B, T, H)) of each call of ``decoder`` in the block."""
    calls: list[tuple[dict[str, Any], Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = by_name(_class_forward(module), module, args, kwargs)
        calls.append((decoder_arguments(module, call), output[0]))

    handle = decoder.register_forward_hook(note, with_kwargs=True)
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def head_outputs(head: nn.Module | None) -> Iterator[list[tuple[torch.Size, Tensor]]]:
    """A list that gets (the shape of the logits, those (V,) at the end of the first row) of each call of ``head``."""
    made: list[tuple[torch.Size, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 3:
            made.append((output.shape, output[0, -1].detach().clone()))  # a forward may go on to change it in place

    handles = [head.register_forward_hook(note)] if head is not None else []
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()
