"""What a SelfAug step returns: transformers' output, with logits that are computed when somebody reads them."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from types import FrameType
from typing import Any, Callable

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast


class LazyLogits:
    """Stands in the output for logits that nobody has asked for yet. Not a tensor: code that walks an output passes
    it by.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = compute


# They copy or walk every output for the sake of its tensors (FSDP1 after the weights are sharded again, DDP with
# find_unused_parameters): these read the stand-in, or each step would make logits for nobody
_WALKERS = {"dataclasses", "torch", "accelerate", "deepspeed"}


@dataclass
class SelfAugOutput(CausalLMOutputWithPast):
    """``CausalLMOutputWithPast`` whose ``logits`` (B, T, V) are made at the first ``.logits``, ``["logits"]``,
    ``get("logits")`` or ``[i]``; ``items()`` and ``values()`` show a stand-in until then.

    A training loop that reads ``loss`` alone pays nothing for them. They carry a gradient if read with gradients
    enabled.
    """

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        object.__setattr__(self, "_selfaug_made", True)

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not isinstance(value, LazyLogits) or "_selfaug_made" not in super().__getattribute__("__dict__"):
            return value  # while the dataclass is made, its own __post_init__ reads every field
        return self._read(value, sys._getframe(1))

    def __getitem__(self, key: Any) -> Any:
        reader = sys._getframe(1)
        if isinstance(key, str):
            return self._read(super().__getitem__(key), reader)  # type: ignore[no-untyped-call]  # likewise
        values = list(self.values())[key]
        return tuple(self._read(v, reader) for v in values) if isinstance(key, slice) else self._read(values, reader)

    def get(self, key: str, default: Any = None) -> Any:
        return self._read(super().get(key, default), sys._getframe(1))

    def _read(self, value: Any, reader: FrameType) -> Any:
        """``value``, or the logits that it stands for, made now; a library that only walks the output gets the
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


def output(loss: Tensor, logits: Callable[[], Tensor], decoded: Any) -> SelfAugOutput:
    """What stock ``forward`` would return: its own fields, under the names that this release gives them.

    decoded: the decoder's output, whose fields (cache, hidden states, attentions) are handed on.
    """
    handed_on = {field.name: decoded.get(field.name) for field in fields(CausalLMOutputWithPast)}
    return SelfAugOutput(**{**handed_on, "loss": loss, "logits": LazyLogits(logits)})
