"""Switch LoRA off and on again: which modules are switched, and which of their attributes.

LoRA layers are recognised by the attribute ``selfaug_reference``: the patch adds it to peft's ``LoraLayer``, and
``disable_adapters`` obeys it. Nothing here imports peft, merges weights or changes ``requires_grad``. Peft's own
``disable_adapter()`` changes it, which breaks FSDP and unfreezes adapters that were loaded frozen (peft#1442 and
peft#3447).
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..eager import eager


def all_modules(model: nn.Module) -> list[nn.Module]:
    """``model`` and every module in it, each once. ``model.modules()`` gives the same and takes several times as long,
    which counts at every step: a model of 80 layers with LoRA has thousands of modules.
    """
    modules, seen = [model], {id(model)}
    for module in modules:  # the list grows on the way
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
    return modules


@eager
def adapter_layers(model: nn.Module) -> list[Any]:
    """All tuner layers and wrappers of peft in ``model``, whether they train or not."""
    return [module for module in all_modules(model) if is_adapter(module)]


@eager
def lora_layers(model: nn.Module) -> list[Any]:
    """The LoRA layers of ``model`` that train: an active adapter has a parameter with a gradient.

    Empty for a plain model, for full fine-tuning, for other tuners than LoRA, and if adapters are disabled or merged.
    """
    return [layer for layer in adapter_layers(model) if lora_trains(layer)]


def is_lora(module: nn.Module) -> bool:
    """Whether ``module`` is a LoRA layer with SelfAug's switch."""
    return hasattr(type(module), "selfaug_reference")


def is_adapter(module: nn.Module) -> bool:
    """Whether ``module`` is a tuner layer or a wrapper of peft. While disabled, it computes what the original does."""
    return "_disable_adapters" in vars(module) or hasattr(type(module), "_disable_adapters")


def trains(layer: Any, adapter: str) -> bool:
    """Whether a parameter of ``adapter`` in this layer has a gradient."""
    return any(parameter.requires_grad for parameter in _parameters(layer, adapter))


def holds(layer: Any, adapter: str) -> bool:
    """Whether this layer has weights of ``adapter``."""
    return any(True for _ in _parameters(layer, adapter))


def has_lora_on(model: nn.Module) -> bool:
    """Whether a LoRA layer of ``model`` computes with LoRA."""
    return any(is_lora(module) and _is_on(module) for module in all_modules(model))


def _is_on(layer: Any) -> bool:
    return not layer.disable_adapters and not layer.merged


def lora_trains(layer: Any) -> bool:
    """Whether ``layer`` is a LoRA layer that trains, see :func:`lora_layers`."""
    return is_lora(layer) and _is_on(layer) and any(trains(layer, adapter) for adapter in layer.active_adapters)


def _parameters(layer: Any, adapter: str) -> Iterator[Tensor]:
    for name in getattr(layer, "adapter_layer_names", None) or ("modules_to_save",):  # peft 0.6's wrapper has no list
        adapters: Any = layer
        for part in name.split("."):  # a wrapper gives paths into the layer inside it
            adapters = getattr(adapters, part, None) or {}
        if adapter in adapters:
            weights = adapters[adapter]
            if isinstance(weights, nn.Module):
                yield from weights.parameters()
            else:
                yield weights


@dataclass(frozen=True)
class Kept:
    """The adapters that the reference keeps on, and the values that it restores.

    adapters: names of the adapters that stay on.
    weights: (parameter, its value when training started), for each parameter that is restored.
    """

    adapters: frozenset[str] = frozenset()
    weights: tuple[tuple[nn.Parameter, Tensor], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.adapters or self.weights)


NOTHING = Kept()


@contextmanager
def switched_off(model: nn.Module, kept: Kept = NOTHING) -> Iterator[None]:
    """Within: every adapter of ``model`` is off except what is ``kept``, every module is in eval mode, and there is no
    gradient. After: everything is as it was.

    In eval mode there is no dropout, no NEFTune noise and no gradient checkpointing. The modules around ``model``
    (PeftModel, DDP, …) are in eval mode, too, because a hook may read the mode of one of them. All tuner layers and
    wrappers of peft are switched, not only LoRA layers (``modules_to_save``, trainable tokens, other tuners of a mixed
    model). They compute with the original module while ``_disable_adapters`` is True. Some have it as an attribute of
    the class until it is changed.
    """
    changes: list[tuple[dict[str, Any], str, Any]] = []  # (attributes of a module, name, new value)
    around = modules_around(model)
    for module in (*all_modules(model), *around):
        own = vars(module)
        if own.get("training"):  # not by getattr: a compiled module has that of the module inside
            changes.append((own, "training", False))
        if is_adapter(module):
            changes += _switch(module, kept.adapters)
    if not kept:  # layers of X-LoRA obey the tuner around the model instead
        changes += [(vars(tuner), "disabled", True) for tuner in around if vars(tuner).get("disabled") is False]
    before = [own.get(name, _MISSING) for own, name, _ in changes]
    try:
        for own, name, value in changes:
            own[name] = value
        with torch.no_grad(), _values(model, kept.weights):
            yield
    finally:
        for (own, name, _), value in zip(changes, before):
            if value is _MISSING:
                del own[name]
            else:
                own[name] = value


_MISSING = object()


@contextmanager
def _values(model: nn.Module, weights: tuple[tuple[nn.Parameter, Tensor], ...]) -> Iterator[None]:
    """Within: these parameters have the given values, if they are in ``model``."""
    if not weights:
        yield
        return
    of_model = {id(parameter) for parameter in model.parameters()}
    changed = [(p, p.data, value) for p, value in weights if id(p) in of_model]
    torch.clear_autocast_cache()  # it holds casts of parameters by identity, so it would miss the new values
    try:
        for parameter, _, value in changed:
            parameter.data = value.to(parameter.device)
        yield
    finally:
        for parameter, now, _ in changed:
            parameter.data = now
        torch.clear_autocast_cache()


def _switch(adapter: Any, keep: frozenset[str]) -> list[tuple[dict[str, Any], str, Any]]:
    """The changes after which only the adapters in ``keep`` are on: (attributes of the module, name, new value)."""
    own = vars(adapter)
    kept = [name for name in sorted(keep) if holds(adapter, name)]
    if kept:
        same = set(kept) == set(active(adapter))
        # a wrapper of a whole module has one active adapter, which old releases hold as a str
        return [] if same else [(own, "_active_adapter", kept[0] if isinstance(adapter._active_adapter, str) else kept)]
    if is_lora(adapter):
        return [(own, "selfaug_reference", True)]
    return [] if adapter._disable_adapters else [(own, "_disable_adapters", True)]


def active(adapter: Any) -> list[str]:
    """The names of the active adapters of a tuner layer or wrapper."""
    names = getattr(adapter, "_active_adapter", None) or []  # wrappers of peft 0.6 have no `active_adapters`
    return [names] if isinstance(names, str) else list(names)


@eager
def modules_around(model: nn.Module) -> list[nn.Module]:
    """The modules that contain ``model``, from the first call on this model or since :func:`forget_modules_around`.

    A module of PyTorch has no pointer to the module that contains it, so the first call looks at every module of the
    process.
    """
    known = _AROUND.get(model)
    if known is None:
        parents: dict[int, list[nn.Module]] = {}
        for candidate in gc.get_objects():
            if issubclass(type(candidate), nn.Module):
                for child in (vars(candidate).get("_modules") or {}).values():
                    parents.setdefault(id(child), []).append(candidate)
        around: dict[int, nn.Module] = {}
        inner = [model]
        while inner:
            for parent in parents.get(id(inner.pop()), []):
                if id(parent) not in around:
                    around[id(parent)] = parent
                    inner.append(parent)
        known = _AROUND[model] = [weakref.ref(module) for module in around.values()]
    return [module for module in (reference() for reference in known) if module is not None]


def forget_modules_around(model: nn.Module) -> None:
    """Call this when the adapters of ``model`` have changed: it may be in another PeftModel now."""
    _AROUND.pop(model, None)


_AROUND: weakref.WeakKeyDictionary[nn.Module, list[weakref.ref[nn.Module]]] = weakref.WeakKeyDictionary()
