"""The reference pass, once per sample instead of once per epoch: its hidden states, kept on disk.

    SELFAUG_CACHE=DIR python train.py               filled by the first epoch, read from the second

A cache that :mod:`..reference_cache` built before training also lets a model train in full, without LoRA: the reference
is then what the cache holds, and the head that it keeps beside it. A sample that is not there is an error.

A sample is known by the base weights (:mod:`.fingerprint`), its tokens up to the last aligned position, which
positions are aligned, and their numbering if it is unusual. Padding and the rest of the batch do not matter. Inputs
that are no tokens, and masks with four dimensions or by type of layer, are not cached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import weakref
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn
from transformers.utils import logging

from .. import config, head, positions
from . import guards, switch
from .entries import Entries
from .fingerprint import ShardedWeights, fingerprint

logger = logging.get_logger("transformers.selfaug")

# arguments of the decoder that a key accounts for; any other tensor makes a batch uncacheable
_ACCOUNTED = {"input_ids", "attention_mask", "position_ids", "cache_position"}
_REBUILD = "Fill it with `python -m selfaug.reference_cache build` from the model and the data that you train on"


class CacheError(RuntimeError):
    """The cache cannot be what the reference comes from."""


def trains_in_full(model: nn.Module) -> bool:
    """Whether weights of the model itself train."""
    return any(parameter.requires_grad for _, parameter in guards.base_parameters(model))


def hidden_states(
    model: Any,
    arguments: dict[str, Any],
    chosen: positions.Selection,
    settings: config.Settings,
    compute: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    """(A, H): the reference's hidden states at the aligned positions that were chosen.

    Args:
        arguments: those of the decoder.
        compute: from indices in the flattened batch to (n, H) hidden states there, by a reference pass. None: there
            is no such pass, the model trains in full.

    Raises:
        CacheError: without ``compute``, a sample is not in the cache; or the weights are sharded.
    """
    sampled = chosen.index[: chosen.aligned]
    store = entries(model, settings)
    samples = keyed_samples(arguments, chosen, store)
    if samples is None:
        if compute is None:
            raise CacheError(f"{_title(model)} trains in full, and this batch is not one that a cache can hold. {_DOC}")
        return compute(sampled)
    device, H = model.model.embed_tokens.weight.device, model.config.hidden_size
    found = [store.get(key, len(index), H) for key, index in samples]
    within = torch.searchsorted(chosen.all_aligned, sampled)
    if all(states is not None for states in found):
        return torch.cat(found)[within].to(device)  # type: ignore[arg-type]
    if compute is None:
        raise CacheError(
            f"{sum(s is None for s in found)} of the {len(found)} samples of this batch are not in {store.folder}, "
            f"and there is no other reference for a model that trains in full. {_advice(store)}"
        )
    states = compute(chosen.all_aligned)
    for (key, index), old in zip(samples, found):
        if old is None:
            store.put(key, states[torch.searchsorted(chosen.all_aligned, index).to(states.device)])
    return states[within.to(states.device)]


_DOC = "See docs/performance.md."
_ENTRIES: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Entries]] = weakref.WeakKeyDictionary()
_HEADS: weakref.WeakKeyDictionary[Entries, Tensor] = weakref.WeakKeyDictionary()


def entries(model: Any, settings: config.Settings) -> Entries:
    """Those of ``model``, whose weights are hashed when it is first seen, before the first update, and again with
    other LoRA layers: something may have been merged.
    """
    folder = str(settings.reference_cache)
    lora = next((weakref.ref(module) for module in model.modules() if switch.is_lora(module)), None)
    key, known = (folder, lora), _ENTRIES.get(model)
    if known is None or known[0] != key:
        root = Path(folder).expanduser()
        try:
            if not (root / "model.json").is_file():
                name = fingerprint(model)
            elif lora and head.is_sharded(model):  # processes that find all their samples would leave the others alone
                raise ShardedWeights("this model is sharded")
            else:  # a model's own folder, named on purpose
                name, root = root.name, root.parent
        except ShardedWeights as error:
            raise CacheError(f"SELFAUG_CACHE needs whole weights, and {error}. Unset it. {_DOC}") from None
        store = Entries(root, name, int(settings.reference_cache_gb * 1e9))
        _describe(store, model)
        known = _ENTRIES[model] = (key, store)
    return known[1]


def base_head(model: Any, settings: config.Settings) -> Callable[[Tensor], Tensor]:
    """The head of the model that the cache was built from, for a model whose own head trains."""
    store = entries(model, settings)
    weight = _HEADS.get(store)
    if weight is None:
        if not (store.folder / "head.pt").exists():
            raise CacheError(f"{store.folder} has no head.pt: it was not built. {_advice(store)}")
        saved = torch.load(store.folder / "head.pt", map_location="cpu", weights_only=True)
        weight = _HEADS[store] = saved.to(model.model.embed_tokens.weight.device)
    return lambda h: nn.functional.linear(h, weight.to(h.dtype))


def keyed_samples(
    arguments: dict[str, Any], chosen: positions.Selection, store: Entries
) -> list[tuple[bytes, Tensor]] | None:
    """(key, flat indices of the aligned positions) of each row that has any, in their order; None if not cacheable."""
    ids, mask, numbers = (arguments.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    tensors = {k for k, v in arguments.items() if v is not None and not isinstance(v, (bool, int, float, str))}
    if ids is None or not tensors <= _ACCOUNTED or not (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2)):
        return None
    if numbers is not None and numbers.dim() != 2:
        return None
    ids, unmasked = ids.cpu(), mask is None
    mask = torch.ones_like(ids) if mask is None else mask.cpu().long()
    numbers = None if numbers is None else numbers.cpu().expand_as(ids)
    samples = []
    for row in range(len(ids)):
        index = chosen.all_aligned[chosen.all_aligned // chosen.total == row]
        if not len(index):
            continue
        last = int(index[-1]) % chosen.total
        columns = mask[row, : last + 1].nonzero().squeeze(-1)
        parts = [ids[row, columns], torch.searchsorted(columns, index % chosen.total)]
        if len(set(mask[row, columns].tolist())) > 1:
            parts.append(mask[row, columns])
        if numbers is not None:
            own = numbers[row, columns] - numbers[row, columns[0]]
            if not torch.equal(own, torch.arange(len(own))):
                parts.append(own)
                if unmasked:  # then transformers takes restarts for documents
                    parts.append(torch.zeros(1))
        digest = hashlib.sha256(store.folder.name.encode())
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part.long().numpy().tobytes())
        samples.append((digest.digest(), index))
    return samples


def _describe(store: Entries, model: Any) -> None:
    """Write model.json. A disk that refuses is no reason to stop: then nothing is kept."""
    if (store.folder / "model.json").exists():
        return
    with contextlib.suppress(OSError):
        _write_description(store, model)


def _write_description(store: Entries, model: Any) -> None:
    store.folder.mkdir(parents=True, exist_ok=True)
    draft = store.folder / f"model.json.{os.getpid()}.new"
    facts = {"model": _title(model), "hidden_size": model.config.hidden_size, "fingerprint": store.folder.name}
    draft.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, store.folder / "model.json")


def described(store: Entries) -> str:
    """The model that a folder was made from, in its own words."""
    try:
        return str(json.loads((store.folder / "model.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError, TypeError):
        return "whose model.json cannot be read"


def _title(model: Any) -> str:
    return getattr(model.config, "_name_or_path", "") or type(model).__name__


def _advice(store: Entries) -> str:
    built = [path.parent for path in store.root.glob("*/built") if path.parent != store.folder]
    if not built or store.built:
        return f"{_REBUILD}. {_DOC}"
    return (
        f"{_REBUILD}. If these weights come from a checkpoint of the model that {built[0]} was built from, set "
        f"SELFAUG_CACHE={built[0]} to align to that model. {_DOC}"
    )
