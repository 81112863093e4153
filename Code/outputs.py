"""What a SelfAug step returns: transformers' output, with logits that are computed when somebody reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable

from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast


class LazyLogits:
    """Stands in the output for logits that nobody has asked for yet. Not a tensor: code that walks an output passes
    it by.
    """

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self.compute = compute
        self.armed = False


@dataclass
class SelfAugOutput(CausalLMOutputWithPast):
    """``CausalLMOutputWithPast`` whose ``logits`` (B, T, V) are made at the first ``.logits``, ``["logits"]`` or
    ``[i]``.

    A training loop that reads ``loss`` alone pays nothing for them. They carry a gradient if read with gradients
    enabled.
    """

    def __post_init__(self) -> None:
        super().__post_init__()  # reads every field
        lazy = vars(self).get("logits")
        if isinstance(lazy, LazyLogits):
            lazy.armed = True

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if isinstance(value, LazyLogits) and value.armed:
            value = value.compute()
            self.logits = value
        return value

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            value = dict(self.items())[key]
            return self.logits if isinstance(value, LazyLogits) else value
        return self.to_tuple()[key]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self[name] for name in self.keys())
