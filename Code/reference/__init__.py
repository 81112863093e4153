"""The reference of a step: one object with hidden states *and* the head that makes logits of them, both of one model.

    LoRA trains                                  LoraOff   a pass of the model with LoRA off, or as it was at the start
    LoRA trains and SELFAUG_CACHE is set         Cached    the same; each sample is computed once, then read from disk
    all weights train and SELFAUG_CACHE is set   Built     the model that the cache was built from; all is from disk

Each has ``states(arguments, chosen)``, which returns (A, H) hidden states at the aligned positions, and ``head``, which
takes (n, H) hidden states and returns (n, V) logits. Neither has a gradient. ``str()`` describes the reference.
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
def reference_of(model: Any, settings: config.Settings, run: Any = None) -> Reference | None:
    """The reference of ``model`` in this step. None if LoRA does not train, and the whole model does not train against
    a cache.

    Args:
        run: the run that this step is a part of, see :meth:`.Remembered.of`: the weights at its start decide what a
            cache has to hold.

    Raises:
        ReferenceModelError: LoRA off is not the model that training started from.
        CacheError: the cache belongs to another model.
    """
    layers = switch.adapter_layers(model)
    if any(switch.lora_trains(layer) for layer in layers):
        kept = guards.kept(model, layers, settings)
        if settings.reference_cache is None or not model.training:  # an evaluation writes no files
            return LoraOff(model, kept)
        if kept:
            return LoraOff(model, kept, f"; {_UNCACHED}: the reference is more than the base weights")
        if decoder.reads_whole_length(decoder_of(model)):
            return LoraOff(model, kept, f"; {_UNCACHED}: a state depends on the length of its batch")
        return Cached(LoraOff(model, kept), cache.own_folder(model, settings, run))
    if settings.reference_cache is not None and guards.trains_in_full(model):
        return cache.built_reference(model, settings, run)  # in an evaluation, too: there is no other reference
    return None
