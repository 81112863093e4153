"""What a SelfAug step returns: transformers' output, whose logits are computed when they are first read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import FrameType
from typing import Any, Callable

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast


class LazyLogits:
    """Stands in an output for logits that nobody has read yet. It is no tensor, so code that collects the tensors of an
    output skips it.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = compute


# These libraries read every field of an output to collect its tensors (FSDP1 after it has sharded the weights again,
# DDP with find_unused_parameters). They get the stand-in; otherwise every step would compute unused logits.
_WALKERS = {"dataclasses", "torch", "accelerate", "deepspeed"}


@dataclass
class SelfAugOutput(CausalLMOutputWithPast):
    """``CausalLMOutputWithPast`` whose ``logits`` (B, T, V) are computed at the first ``.logits``, ``["logits"]``,
    ``get("logits")`` or ``[i]``. Until then ``items()`` and ``values()`` show a stand-in.

    A training loop that reads ``loss`` alone pays nothing for logits. Logits have a gradient if gradients are enabled
    when they are read.
    """

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        object.__setattr__(self, "_selfaug_made", True)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not isinstance(value, LazyLogits) or "_selfaug_made" not in super().__getattribute__("__dict__"):
            return value  # __post_init__ of the dataclass reads every field
        return self._read(value, sys._getframe(1))

    def __getitem__(self, key: Any) -> Any:
        reader = sys._getframe(1)
        if isinstance(key, str):
            stock: Any = super()
            return self._read(stock.__getitem__(key), reader)
        values = list(self.values())[key]
        return tuple(self._read(v, reader) for v in values) if isinstance(key, slice) else self._read(values, reader)

    def get(self, key: str, default: Any = None) -> Any:
        stock: Any = super()
        return self._read(stock.get(key, default), sys._getframe(1))

    def _read(self, value: Any, reader: FrameType) -> Any:
        """``value`` or, for a stand-in, the logits, which are computed now. A library that collects tensors gets the
        stand-in.
        """
        if not isinstance(value, LazyLogits):
            return value
        if reader.f_globals.get("__name__", "").partition(".")[0] in _WALKERS:
            return value
        self.logits = value.compute()
        return self.logits

    def to_tuple(self) -> tuple[Any, ...]:
        values: tuple[Any, ...] = self[:]
        return values


def output(loss: Tensor, logits: Callable[[], Tensor], decoded: Any, more: Sequence[str] = ()) -> SelfAugOutput:
    """The output of stock ``forward``: its fields, under the names of this transformers release.

    Args:
        loss: () with its gradient.
        logits: computes the logits (B, T, V).
        decoded: the decoder's output; its fields (cache, hidden states, attentions) are copied.
        more: the names of the fields that the family's own output has beside those.
    """
    copied = {field.name: decoded.get(field.name) for field in fields(CausalLMOutputWithPast)}
    made = SelfAugOutput(**{**copied, "loss": loss, "logits": LazyLogits(logits)})
    for name in more:
        if decoded.get(name) is not None:
            made[name] = decoded[name]
    return made
