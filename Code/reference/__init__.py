"""What a step aligns to: one object that has hidden states *and* the head that turns them into logits, both of one
model.

    LoRA trains                           LoraOff     the model with LoRA off (or as it was at the start), by a pass
    LoRA trains, SELFAUG_CACHE is set     Cached      the same, each sample computed once and then read from disk
    all weights train, the same set       Built       the model that a cache was built from, all from disk

Each has ``states(arguments, chosen)``, (A, H) hidden states at the aligned positions, and ``head``, from (n, H) hidden
states to (n, V) logits, without a gradient. ``str()`` says in words what it is.
"""

from __future__ import annotations

from typing import Any, Union

from .. import config
from ..eager import eager
from ..family import decoder_of
from . import cache, decoder, guards, switch
from .cache import Built, Cached
from .lora_off import LoraOff

_UNCACHED = "SELFAUG_CACHE is not used"
Reference = Union[LoraOff, Cached, Built]


@eager
def reference_of(model: Any, settings: config.Settings) -> Reference | None:
    """What ``model`` aligns to in this step; None if neither LoRA nor, beside a cache, the model itself trains.

    Raises:
        ReferenceModelError: LoRA off is not the model that training started from.
        CacheError: the cache is not one of this model's.
    """
    from_disk = settings.reference_cache is not None and model.training
    layers = switch.adapter_layers(model)
    if any(switch.lora_trains(layer) for layer in layers):
        kept = guards.kept(model, layers, settings)
        if not from_disk:
            return LoraOff(model, kept)
        if kept:
            return LoraOff(model, kept, f"; {_UNCACHED}: the reference is more than the base weights")
        if decoder.reads_whole_length(decoder_of(model)):
            return LoraOff(model, kept, f"; {_UNCACHED}: a state depends on the length of its batch")
        return Cached(LoraOff(model, kept), cache.own_folder(model, settings))
    return cache.built_reference(model, settings) if from_disk and guards.trains_in_full(model) else None
