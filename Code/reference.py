"""The reference: the same network, same weights, same input, with LoRA switched off.

LoRA layers are known by the attribute ``selfaug_reference``, which the patch adds to peft's ``LoraLayer`` and which its
``disable_adapters`` obeys. Nothing here imports peft, merges weights or touches ``requires_grad`` (peft's
``disable_adapter()`` does the latter: it breaks FSDP and unfreezes adapters that were loaded frozen, peft#1442 and
peft#3447).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .eager import eager, eager_around

# decoder arguments with a position axis, and that axis; a call with any other tensor argument is not shortened
_POSITION_AXES = {"input_ids": 1, "inputs_embeds": 1, "position_ids": -1, "attention_mask": -1, "cache_position": 0}


@eager
def lora_layers(model: nn.Module) -> list[nn.Module]:
    """The LoRA layers of ``model`` that are training: an active adapter has a parameter that takes a gradient.

    Empty for a plain model, for full fine-tuning, for other tuners than LoRA, and where the user disabled or merged
    the adapters.
    """
    return [module for module in model.modules() if is_lora(module) and _trains_any(module)]


def is_lora(module: nn.Module) -> bool:
    """Whether ``module`` is a LoRA layer with SelfAug's switch."""
    return hasattr(type(module), "selfaug_reference")


def trains(layer: Any, adapter: str) -> bool:
    """Whether a parameter of ``adapter`` in this LoRA layer takes a gradient."""
    return any(parameter.requires_grad for parameter in _parameters(layer, adapter))


def holds(layer: Any, adapter: str) -> bool:
    """Whether this LoRA layer has weights of ``adapter``."""
    return any(True for _ in _parameters(layer, adapter))


def has_lora_on(model: nn.Module) -> bool:
    """Whether a LoRA layer of ``model`` answers with LoRA."""
    return any(is_lora(module) and _is_on(module) for module in model.modules())


def _is_on(layer: Any) -> bool:
    return not layer.disable_adapters and not layer.merged


def _trains_any(layer: Any) -> bool:
    return _is_on(layer) and any(trains(layer, adapter) for adapter in layer.active_adapters)


def _parameters(layer: Any, adapter: str) -> Iterator[Tensor]:
    for name in layer.adapter_layer_names:
        adapters = getattr(layer, name, None) or {}
        if adapter in adapters:
            found = adapters[adapter]
            if isinstance(found, nn.Module):
                yield from found.parameters()
            else:
                yield found


@contextmanager
def switched_off(model: nn.Module, keep: frozenset[str] = frozenset()) -> Iterator[None]:
    """Within: every adapter of ``model`` but those in ``keep`` is off, every module in eval mode, no gradient. After:
    everything as it was.

    Eval mode means no dropout, no NEFTune noise, and gradient checkpointing not engaged. Beside LoRA layers it
    switches peft's wrappers of whole modules (``modules_to_save``, trainable tokens), which then answer with the
    original module.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    lora: list[Any] = [module for module in modules if is_lora(module)]
    wrappers = [m for m in modules if not is_lora(m) and vars(m).get("_disable_adapters") is False]
    narrowed = {}
    if keep:
        narrowed = {m: m._active_adapter for m in lora if any(a in keep and holds(m, a) for a in m.active_adapters)}
        lora = [module for module in lora if module not in narrowed]
        wrappers = [module for module in wrappers if not keep.intersection(_active(module))]
    try:
        for module in training:
            module.training = False
        for module in lora:
            module.selfaug_reference = True
        for module in narrowed:
            module._active_adapter = [adapter for adapter in module.active_adapters if adapter in keep]
        for module in wrappers:
            module._disable_adapters = True
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
        for module in lora:
            module.selfaug_reference = False
        for module, active in narrowed.items():
            module._active_adapter = active
        for module in wrappers:
            module._disable_adapters = False


def _active(wrapper: nn.Module) -> list[str]:
    active = vars(wrapper).get("_active_adapter") or []
    return [active] if isinstance(active, str) else list(active)


@eager_around
def _needs_cache(decoder: Any, arguments: dict[str, Any]) -> bool:
    """transformers tells packed documents apart by their position ids only where there is no cache. The reference has
    to see what the tuned pass sees, so it fills a cache (of its own) if that one does.
    """
    if arguments.get("position_ids") is None or arguments.get("attention_mask") is not None:
        return False
    if getattr(decoder, "gradient_checkpointing", False):  # the tuned pass has gone without
        return False
    wanted = arguments.get("use_cache")
    return bool(decoder.config.use_cache if wanted is None else wanted)


def hidden_states(decoder: nn.Module, arguments: dict[str, Any], length: int) -> Tensor:
    """(B, length or T, H): the decoder's last hidden states at the first ``length`` positions, by the reference.

    Call it inside :func:`switched_off`. ``arguments`` are those of the tuned pass. Later positions are not computed
    where every argument can be cut, which a causal decoder allows. The caller's key-value cache is never touched.
    """
    arguments = {**arguments, "use_cache": _needs_cache(decoder, arguments)}
    arguments.pop("past_key_values", None)
    for unwanted in ("output_hidden_states", "output_attentions"):
        if arguments.get(unwanted):
            arguments[unwanted] = False
    tensors = {
        name: value
        for name, value in arguments.items()
        if value is not None and not isinstance(value, (bool, int, float, str))
    }
    if all(name in _POSITION_AXES and isinstance(value, Tensor) for name, value in tensors.items()):
        for name, value in tensors.items():
            arguments[name] = value.narrow(_POSITION_AXES[name], 0, min(length, value.shape[_POSITION_AXES[name]]))
            if name == "attention_mask" and value.dim() == 4:
                arguments[name] = arguments[name].narrow(-2, 0, min(length, value.shape[-2]))
    return decoder(**arguments)[0]
