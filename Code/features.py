"""``SELFAUG_ALIGN``: a term that holds the outputs of modules inside the decoder to those of the reference, in place of
the logits (arXiv 2509.03934, Table 2).

    MSE = mean over aligned t  mean over modules m  1/F_m  sum over f  (tuned_m(t)_f - base_m(t)_f) ** 2

``q``, ``k``, ``v``, ``o`` are the attention's projections, ``attention`` is all four, ``ffn`` the MLP block, ``layers``
each decoder layer. The paper says no more than that intermediate features are aligned: the squared difference and its
means are ours. Positions, weights and alpha are those of the KL. The reference's outputs have no gradient.

A step runs each of its two passes within :func:`recorded`, whose hooks keep the outputs and are gone afterwards. So a
layer that gradient checkpointing computes again, in the backward pass, is not kept twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from . import config, family, loss
from .eager import eager
from .head import is_sharded
from .positions import Selection, at
from .reference import Reference

# by value of `align`: the last names of the modules, of which each layer has to have one each
_NAMES: Mapping[str, tuple[str, ...]] = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "o": ("o_proj",),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "ffn": ("mlp",),
}
_FUSED = ("qkv", "query_key_value", "c_attn", "W_pack")  # in the names of projections that are q, k and v in one
_DOC = "See docs/settings.md"


class Recorded:
    """What came out of the chosen modules in the last call of the decoder.

    outputs: for each module, by its name, its output (B, L, F) in each of its calls.
    without_grad: some module was called while gradients were disabled.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, list[Any]] = {}
        self.without_grad = False


@contextmanager
def recorded(model: Any, settings: config.Settings, reference: Reference | None) -> Iterator[Recorded]:
    """Within: the outputs of the modules that ``settings.align`` names are recorded; nothing if that is "logits". The
    same hooks are there without a ``reference``, in a micro-batch that has no term, and keep nothing: what does not
    work is seen in the first micro-batch, and a compiled decoder is compiled with its hooks.

    Raises:
        SettingError: see :func:`modules_of`.
    """
    record, modules = Recorded(), modules_of(model, settings.align)
    wanted = reference is not None

    def begin(*_: Any) -> None:
        record.outputs = {name: [] for name in modules}
        record.without_grad = False

    def note(name: str, output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        record.without_grad |= not torch.is_grad_enabled()
        if not wanted:
            return
        # A copy, because the model may write over its own (Liger's rotary embeddings do). A copy saves no tensor for
        # the backward pass: checkpointing counts those, and this hook is gone when it counts again.
        record.outputs[name].append(output.clone() if isinstance(output, Tensor) else output)

    handles = [family.decoder_of(model).register_forward_pre_hook(begin)] if modules else []
    for name, module in modules.items():
        handles.append(module.register_forward_hook(lambda _, __, output, name=name: note(name, output)))
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


@eager
def with_mse(terms: loss.Terms, tuned: Recorded, base: Recorded, chosen: Selection, align: str) -> loss.Terms:
    """``terms``, which have the NLL alone, plus the MSE at the aligned positions: its weighted sum in ``total``, and
    its sum over aligned positions, for the logs, in ``kl_sum``. The records are empty afterwards.

    Args:
        tuned, base: of the pass with LoRA on and of that of the reference.

    Raises:
        SettingError: an output has no gradient, or is not one row of features for each position.
    """
    if torch.is_grad_enabled() and tuned.without_grad:
        raise config.SettingError(
            f"SELFAUG_ALIGN={align} needs the gradient of modules inside the decoder, and they were called while "
            "gradients are disabled: gradient checkpointing with use_reentrant=True does that. Set "
            'gradient_checkpointing_kwargs={"use_reentrant": False}, or unset SELFAUG_ALIGN. No step was made. '
            f"{_DOC}."
        )
    if not chosen.aligned:
        return terms
    names, total, mse_sum = list(tuned.outputs), terms.total, terms.kl_sum
    for name in names:
        found, wanted = (_aligned(name, record.outputs.pop(name, []), chosen, align) for record in (tuned, base))
        weight, count = chosen.beside(found).weights.unbind(-1)
        wide = torch.promote_types(found.dtype, weight.dtype)
        mse = (found.to(wide) - wanted.to(found.device, wide)).square().mean(-1) / len(names)  # (A,)
        total = total + (weight * mse).sum().to(total)
        mse_sum = mse_sum + (count * mse.detach()).sum().to(mse_sum)
    return loss.Terms(total, terms.nll_sum, mse_sum)


def _aligned(name: str, outputs: list[Any], chosen: Selection, align: str) -> Tensor:
    """(A, F): the features of one module at the aligned positions."""
    output = outputs[0] if len(outputs) == 1 else None
    if not isinstance(output, Tensor) or output.dim() != 3 or not _fits(output, chosen):
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in outputs]
        raise config.SettingError(
            f"SELFAUG_ALIGN={align} needs one output of {name} in each pass, with the shape ({chosen.rows} rows, "
            f"{chosen.length} to {chosen.total} positions, features). Found: {shapes or 'none'}. A model that was "
            "compiled (torch.compile) and called before calls no hook, and some families pass tokens without rows. "
            f"Set SELFAUG_ALIGN to another value from the first step on, or unset it. No step was made. {_DOC}."
        )
    return at(output, chosen.beside(output).index[: chosen.aligned], chosen.total)


def _fits(output: Tensor, chosen: Selection) -> bool:
    return len(output) == chosen.rows and chosen.length <= output.shape[1] <= chosen.total


def modules_of(model: Any, align: str) -> dict[str, nn.Module]:
    """The modules whose outputs ``align`` compares, by name; none for "logits".

    Raises:
        SettingError: a layer of the decoder does not have one module of each name, or the weights or features are
            spread over processes.
    """
    if align == "logits":
        return {}
    if is_sharded(model) or (getattr(model, "_tp_size", None) or 1) > 1:
        raise config.SettingError(
            f"SELFAUG_ALIGN={align} and a model that is spread over processes (FSDP, ZeRO-3, tensor parallelism): a "
            "process has a part of the weights or of the features, and nobody has tried whether the gradient of such "
            f"a part is right. Unset SELFAUG_ALIGN, or train with DDP or on one device. No step was made. {_DOC}."
        )
    layers = _layers(model)
    found = [_found(layer, align) for layer in layers]
    if not layers or None in found:
        raise config.SettingError(_lacking(model, layers, found.index(None) if layers else 0, align))
    return {f"layer {i} {name}".rstrip(): module for i, of in enumerate(found) for name, module in (of or {}).items()}


def _layers(model: Any) -> list[nn.Module]:
    layers = getattr(family.text_part(family.decoder_of(model)), "layers", None)
    return list(layers) if isinstance(layers, nn.ModuleList) else []


def _found(layer: nn.Module, align: str) -> dict[str, nn.Module] | None:
    """The modules of one layer by name. None if there is not exactly one of each."""
    if align == "layers":
        return {"": layer}
    found = {name: module for name, module in layer.named_modules() if name.rpartition(".")[2] in _NAMES[align]}
    return found if sorted(name.rpartition(".")[2] for name in found) == sorted(_NAMES[align]) else None


def _lacking(model: Any, layers: list[nn.Module], number: int, align: str) -> str:
    names = ", ".join(_NAMES.get(align, ("layers",)))
    if not layers:
        there = f"no list of layers named `layers` in the decoder of {type(model).__name__}"
    else:  # not deeper: adapters are there, and a router's experts
        parts = [name for name, module in layers[number].named_modules() if 0 < len(name.split(".")) <= 2 and name]
        there = f"in layer {number} of {type(model).__name__} {', '.join(parts)}"
        if any(mark in part for part in parts for mark in _FUSED):
            there += " (q, k and v are one product, whose parts have no outputs of their own)"
    possible = [one for one in config.ALIGNS if one == "logits" or (layers and all(_found(x, one) for x in layers))]
    return (
        f"SELFAUG_ALIGN={align} compares the outputs of one module of each name in every layer of the decoder. Looked "
        f"for: {names}. Found: {there}. Set SELFAUG_ALIGN to a value that fits this model ({', '.join(possible)}), or "
        f"unset it. No step was made. {_DOC}."
    )
