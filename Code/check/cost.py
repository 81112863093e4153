"""What a step costs: floating-point operations and the peak of the memory, on the meta device. Nothing is computed.

The batch has numbers and the model has none: each step runs as it would in training, and what its operators would
allocate and multiply is added up.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from .. import family, loss
from ..labels import IGNORE_INDEX, shifted


def _grouped(a: Any, b: Any) -> int:
    """The products of the rows of ``a`` (T, K) with the matrices of ``b`` (E, K, N), each row with one of them."""
    groups = a[0] if len(a) == len(b) == 3 else 1
    return int(2 * groups * a[-2] * a[-1] * b[-1])


# What torch's own table lacks: the attention of CPUs, and the experts of a mixture. These functions get shapes.
FLOPS: dict[str, Callable[..., int]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": lambda q, k, v, *_: sdpa_flop_count(q, k, v),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": lambda gradient, q, k, v, *_: sdpa_backward_flop_count(
        gradient, q, k, v
    ),
    "aten._grouped_mm": lambda a, b, *_: _grouped(a, b),
}
_sdpa = torch.nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class Cost:
    """Of one step, forward and backward.

    flops: of the matrix products, also in attention, where the whole (T, T) square is counted; a causal kernel may
        leave out half of it.
    peak: bytes of tensors above the weights, at the most.
    logits: how many of these bytes hold logits, at the most: tensors of the size of the vocabulary, in any type.
    """

    flops: int
    peak: int
    logits: int


def costs(model: Any, data: dict[str, Tensor], every: int = 1) -> dict[str, Cost]:
    """The cost of a step with stock's forward, with stock's loss from a fused head, and with SelfAug.

    Args:
        model: on the meta device, with LoRA, in training mode. Its setting ``every`` is 1, or 2 if ``every`` is more.
        data: the batch, on the CPU. The model attends as if there were no padding in it, which costs the same.
        every: one of so many micro-batches has the term. SelfAug's operations are the mean over them, and its peak is
            the highest.
    """
    steps: dict[str, Callable[[], Tensor]] = {
        "stock": lambda: family.stock_forward(model)(model, **data).loss,
        "stock fused": lambda: fused(model, data),
        "selfaug": lambda: model(**data).loss,
    }
    with _without_numbers(model):
        counted = {name: _cost(model, step) for name, step in steps.items()}
        if every > 1:  # two micro-batches in a row: one has the term
            other, one = sorted((counted["selfaug"], _cost(model, steps["selfaug"])), key=lambda cost: cost.flops)
            mean = (one.flops + (every - 1) * other.flops) // every
            counted["selfaug"] = Cost(mean, max(one.peak, other.peak), max(one.logits, other.logits))
    return counted


def fused(model: Any, data: dict[str, Tensor]) -> Tensor:
    """Stock's mean NLL in chunks of supervised positions, as the fused heads of TRL and Liger compute it."""
    decoder, head = family.decoder_of(model), family.head_of(model)
    hidden = decoder(**{name: value for name, value in data.items() if name != "labels"})[0].flatten(0, 1)
    next_labels = shifted(data["labels"]).flatten()
    index = (next_labels != IGNORE_INDEX).nonzero().squeeze(-1)
    size = loss.auto_chunk_size(family.text_config(model).vocab_size, hidden.device)
    chosen, none = hidden[index.to(hidden.device)], hidden.new_empty(0)
    terms = loss.chunked_loss(chosen, chosen.detach()[:0], next_labels[index], none, head, head, size)
    mean: Tensor = terms.total / max(1, len(index))
    return mean


def _cost(model: Any, step: Callable[[], Tensor]) -> Cost:
    gc.collect()
    with Operators(family.text_config(model).vocab_size) as seen:
        step().backward()
    model.zero_grad(set_to_none=True)
    return Cost(seen.flops, seen.all.peak, seen.logits.peak)


class Bytes:
    """How many bytes are alive now, and how many were at the most."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, size: int) -> None:
        self.now += size
        self.peak = max(self.peak, self.now)


class Operators(TorchDispatchMode):
    """Adds up the products of the operators within, and the bytes of the storages that they create, while these live.

    Args:
        vocabulary: tensors with so many columns are logits.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.vocabulary = vocabulary
        self.flops = 0
        self.all, self.logits = Bytes(), Bytes()
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta and args[0].dtype == torch.bool:
            return True  # "is every mask open?", "is every document one?": the model asks before it makes a mask
        before = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if str(packet) in FLOPS:
            self.flops += FLOPS[str(packet)](*(arg.shape if isinstance(arg, Tensor) else arg for arg in args))
        elif packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in before and storage._cdata not in self._seen:
                self._add(storage, tensor.shape[-1:] == (self.vocabulary,))
        return out

    def _add(self, storage: Any, is_logits: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        counted = [self.all, self.logits] if is_logits else [self.all]
        self._seen[key] = weakref.ref(storage, lambda _: self._drop(key, size, counted))
        for each in counted:
            each.add(size)

    def _drop(self, key: int, size: int, counted: list[Bytes]) -> None:
        self._seen.pop(key, None)
        for each in counted:
            each.add(-size)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextlib.contextmanager
def _without_numbers(model: Any) -> Iterator[None]:
    """Within, a decoder on the meta device can be called with a batch that has numbers, and attends by a kernel that
    keeps no (T, T) matrix, as a GPU would.
    """
    decoder = family.decoder_of(model)
    forward: Callable[..., Any] = decoder.forward
    autocast: Any = torch.autocast

    def on_meta(*args: Any, **kwargs: Any) -> Any:
        return forward(*map(_to_meta, args), **{name: _to_meta(value) for name, value in kwargs.items()})

    def any_device(device_type: str, *args: Any, **kwargs: Any) -> Any:  # until 5.0, rotary embeddings name the device
        return contextlib.nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    places = ((torch.nn.functional, "scaled_dot_product_attention", flash_attention), (torch, "autocast", any_device))
    decoder.forward = on_meta
    try:
        for module, name, stand_in in places:
            setattr(module, name, stand_in)
        yield
    finally:
        del decoder.forward
        setattr(torch.nn.functional, "scaled_dot_product_attention", _sdpa)  # noqa: B010  # of another signature
        setattr(torch, "autocast", autocast)  # noqa: B010  # mypy: a class is assigned to


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Attention by the kernel of a CPU. The meta device would choose one that keeps (T, T) matrices; so it does where
    keys and values have different sizes, which that kernel does not take.
    """
    if q.shape[-1] != v.shape[-1]:
        return _sdpa(q, k, v, attn_mask, dropout_p, is_causal, **options)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) if groups > 1 else x for x in (k, v))
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    attended: Tensor = attention(q, k, v, 0.0, is_causal, attn_mask=attn_mask, scale=options.get("scale"))[0]
    return attended
