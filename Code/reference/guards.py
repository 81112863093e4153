"""Checks that the model with LoRA off is the model that training started from. If it is not, the reference is wrong.

:func:`kept` runs at every step. It examines the model at the first step, and again if the adapters or the parameters
that train have changed. It raises a :class:`ReferenceModelError` that says what is wrong, why that matters and what to
do. docs/reference-model.md has the table.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .. import config
from ..eager import eager
from ..head import is_sharded
from . import switch

# values of peft's init_lora_weights (the part before "_") that change or replace the base weights
_CHANGES_THE_BASE = {
    "pissa": "PiSSA moves the principal part of each base weight into LoRA",
    "olora": "OLoRA subtracts its first adapter from each base weight",
    "corda": "CorDA moves a part of each base weight into LoRA",
    "loftq": "LoftQ replaces each base weight by its quantised form, whose error the first adapter makes up for",
    "lora_ga": "LoRA-GA subtracts its first adapter from each base weight",
    "kasa": "KaSA cuts the smallest singular values out of each base weight",
}
_OFF = "or set SELFAUG=0 to train without SelfAug on purpose"


class ReferenceModelError(RuntimeError):
    """LoRA off is not the model that training started from."""

    def __init__(self, found: str, why: str, do: str) -> None:
        super().__init__(
            "SelfAug cannot take the model with LoRA off as its reference.\n"
            f"  found: {found}\n  why:   {why}\n  do:    {do}, {_OFF} (docs/reference-model.md)."
        )


@eager
def kept(model: nn.Module, layers: list[Any], settings: config.Settings) -> switch.Kept:
    """What the reference keeps of the adapters: nothing, unless the user chooses it.

    Args:
        model: a Qwen2ForCausalLM with LoRA that trains.
        layers: its :func:`.switch.adapter_layers`.
        settings: ``settings.reference`` is the user's choice for adapters that are frozen or had weights before
            training.

    Raises:
        ReferenceModelError: the model with LoRA off is not the model that training started from.
    """
    facts = _facts(model, layers, settings)
    known = _SEEN.get(model)
    if known is None or known[0] != facts:
        switch.forget_modules_around(model)
        known = _SEEN[model] = (facts, _examine(model, layers, settings))
    return known[1]


def _facts(model: nn.Module, layers: list[Any], settings: config.Settings) -> tuple[Any, ...]:
    """Everything that :func:`_examine` depends on and a script may change between two steps: which adapter layers there
    are (peft's unload() and get_peft_model() keep the model object); which adapters of each layer are active, train or
    are merged; and which weights of the base model train.
    """
    states = [
        (
            weakref.ref(layer),
            tuple((name, switch.trains(layer, name)) for name in switch.active(layer)),
            tuple(getattr(layer, "merged_adapters", ())),
        )
        for layer in layers
    ]
    trained = [name for name, parameter in base_parameters(model) if parameter.requires_grad]
    values = [id(p) for p in model.parameters() if p.requires_grad] if settings.reference == "start" else []
    return (settings.reference, states, trained, values)


_SEEN: weakref.WeakKeyDictionary[nn.Module, tuple[Any, switch.Kept]] = weakref.WeakKeyDictionary()


def _examine(model: nn.Module, layers: list[Any], settings: config.Settings) -> switch.Kept:
    active = {name for layer in layers for name in switch.active(layer) if switch.holds(layer, name)}
    trained = {name for layer in layers for name in switch.active(layer) if switch.trains(layer, name)}
    if settings.reference == "start":
        return _start(model, active)
    _check_merged(layers)
    _check_initialisation(model, active)
    _check_base_weights(model, active)
    frozen = frozenset(active - trained)
    if not frozen or settings.reference == "base":
        return switch.NOTHING
    if settings.reference == "frozen-adapters":
        return switch.Kept(frozen)
    raise ReferenceModelError(
        f"adapter {_names(frozen)} is active and frozen beside {_names(trained)}, which trains",
        "the reference may be the model without any adapter, or the one that the frozen adapter belongs to",
        "set SELFAUG_REFERENCE=base for the first or SELFAUG_REFERENCE=frozen-adapters for the second",
    )


def _start(model: nn.Module, active: set[str]) -> switch.Kept:
    """What SELFAUG_REFERENCE=start keeps: the adapters that were active at the first step of this process, and for
    every parameter that trains a copy of its value at the first step in which it trained.
    """
    if is_sharded(model):
        raise ReferenceModelError(
            "SELFAUG_REFERENCE=start and weights that are spread over processes (FSDP, ZeRO-3)",
            "the values that a weight had at the start are kept whole",
            "merge the adapter into the model before training (merge_and_unload) and add a new one",
        )
    names, known = _STARTS.setdefault(model, (frozenset(active), {}))
    parameters = dict(model.named_parameters())
    gone = [name for name, (parameter, _) in known.items() if parameters.get(name) is not parameter]
    if gone:
        raise ReferenceModelError(
            f"SELFAUG_REFERENCE=start, and {gone[0]} is no longer the parameter that it was at the first step",
            "its value at the start cannot be put back",
            "load weights before the first step, or without assign=True",
        )
    for name, parameter in parameters.items():
        if parameter.requires_grad and name not in known:
            known[name] = (parameter, parameter.detach().clone())
    return switch.Kept(names, tuple(known.values()))


Start = tuple[frozenset[str], dict[str, tuple[nn.Parameter, Tensor]]]
_STARTS: weakref.WeakKeyDictionary[nn.Module, Start] = weakref.WeakKeyDictionary()


def had_weights(model: nn.Module) -> list[str]:
    """Names of the adapters that train and have weights other than 0. At the first step these are adapters that were
    loaded, and adapters with an initialisation that changes nothing without being 0 (orthogonal, AdaLoRA).
    """
    names = set()
    for layer in switch.lora_layers(model):
        for name in layer.active_adapters:
            pairs = [[getattr(layer, part, {}) for part in pair] for pair in _PRODUCTS]
            if any(name in a and name in b and _is_not_zero(a[name]) and _is_not_zero(b[name]) for a, b in pairs):
                names.add(name)
    return sorted(names)


_PRODUCTS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))


def _is_not_zero(factor: Any) -> bool:
    tensors = factor.parameters() if isinstance(factor, nn.Module) else [factor]
    # if a weight is spread over processes, only the local part: a look at the whole would wait for other processes
    local = [getattr(tensor, "_local_tensor", tensor).detach() for tensor in tensors]
    return any(not tensor.is_meta and bool(tensor.any()) for tensor in local)  # on meta it is offloaded, so unknown


def _check_merged(layers: list[Any]) -> None:
    merged = {name for layer in layers for name in getattr(layer, "merged_adapters", ())}
    if merged:
        raise ReferenceModelError(
            f"adapter {_names(merged)} is merged into base weights while LoRA trains",
            "switching LoRA off does not take it out of the weights again",
            "call model.unmerge_adapter() before training, or model.merge_and_unload() before the new LoRA is added "
            "if the merged model is the one to hold on to",
        )


def _check_initialisation(model: nn.Module, active: set[str]) -> None:
    for name, adapter in _configs(model):
        given = getattr(adapter, "init_lora_weights", None)
        if name not in active:
            continue
        if getattr(adapter, "kasa_config", None) is not None:
            given, setting = "kasa", "kasa_config is set"
        else:
            setting = f"init_lora_weights={given!r}"
        for kind, why in _CHANGES_THE_BASE.items():
            if isinstance(given, str) and (given.lower() == kind or given.lower().startswith(f"{kind}_")):
                raise ReferenceModelError(
                    f"adapter {name!r}: {setting}",
                    f"{why}: with LoRA off, what remains is not the model that training started from",
                    "set SELFAUG_REFERENCE=start (the model as it is at the first step, that adapter on), or take an "
                    "initialisation that leaves the base weights alone (init_lora_weights=True, 'gaussian', "
                    "'orthogonal', 'eva')",
                )


def _configs(model: nn.Module) -> list[tuple[str, Any]]:
    """(name, config) of the adapters of every PEFT model around ``model``. If one PEFT model is inside another, both
    may have an adapter "default", and the model itself shows the adapters of the outer one.
    """
    owners = [model, *switch.modules_around(model)]
    by_owner = [vars(owner).get("peft_config") for owner in owners]
    return [pair for configs in by_owner if isinstance(configs, dict) for pair in sorted(configs.items())]


def _check_base_weights(model: nn.Module, active: set[str]) -> None:
    # during a step FSDP1 shows views that are no Parameter; they have a gradient if anything in their unit has one
    trained = [name for name, p in base_parameters(model) if p.requires_grad and isinstance(p, nn.Parameter)]
    if not trained:
        return
    biases = {getattr(adapter, "bias", "none") for _, adapter in _configs(model)} - {"none"}
    if biases and all(name.endswith("bias") for name in trained):
        cause = f"LoraConfig(bias={sorted(biases)[0]!r})"
        do = "set bias='none' in LoraConfig"
    else:
        cause = "requires_grad=True on weights of the base model"
        do = "freeze them, train them as copies (modules_to_save in LoraConfig)"
    shown = ", ".join(trained[:3]) + (f" and {len(trained) - 3} more" if len(trained) > 3 else "")
    raise ReferenceModelError(
        f"{cause}: {shown} train beside LoRA",
        "they stay trained when LoRA is switched off, so the reference would drift with the model",
        do,
    )


def trains_in_full(model: nn.Module) -> bool:
    """Whether any weight of the base model trains."""
    return any(parameter.requires_grad for _, parameter in base_parameters(model))


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of every parameter that belongs to no adapter."""
    for prefix, module in base_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{prefix}{name}", parameter


def base_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(name with a dot at its end, module) of every module that belongs to no adapter. An adapter layer has the base
    model's module as ``base_layer``, a wrapper of a whole module as ``original_module`` or ``token_adapter``. In peft
    0.6 a LoRA layer is the base layer itself.
    """
    yield prefix, module
    adapter = switch.is_adapter(module)
    for name, child in module._modules.items():
        if child is not None and (not adapter or name in ("base_layer", "original_module", "token_adapter")):
            yield from base_modules(child, f"{prefix}{name}.")


@eager
def unpatched_peft(model: nn.Module) -> type | None:
    """The class ``LoraLayer`` if it is not patched and a layer of it trains in ``model``; None otherwise."""
    for module in model.modules():
        if not switch.is_lora(module) and any(parameter.requires_grad for parameter in module.parameters()):
            for cls in type(module).__mro__:
                if cls.__name__ == "LoraLayer" and cls.__module__.startswith("peft."):
                    return cls
    return None


def other_adapters(model: nn.Module) -> str:
    """The classes of peft's layers that train in a ``model`` without any LoRA layer, such as those of IA3; else empty.
    Full fine-tuning has no such layer.
    """
    modules = switch.all_modules(model)
    layers = [module for module in modules if switch.is_adapter(module)]
    if any(switch.is_lora(layer) for layer in layers):
        return ""
    training = {type(a) for a in layers if any(switch.trains(a, name) for name in switch.active(a))}
    # that of LLaMA-Adapter is no layer in peft's sense, and has the weights itself
    training |= {type(m) for m in modules if type(m).__module__.startswith("peft.tuners.") and _has_trained(m)}
    return ", ".join(sorted(f"{cls.__module__}.{cls.__qualname__}" for cls in training))


def _has_trained(module: nn.Module) -> bool:
    return any(weight is not None and weight.requires_grad for weight in module._parameters.values())


def _names(adapters: Any) -> str:
    return ", ".join(repr(name) for name in sorted(adapters))
