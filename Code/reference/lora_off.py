"""The reference that LoRA training computes: hidden states from an extra pass with LoRA off, and the model's head."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from ..eager import eager_around
from ..family import decoder_of, head_of, text_config
from ..head import is_frozen_matrix, is_sharded, sharded_linear
from ..positions import Selection
from . import decoder, switch


class LoraOff:
    """The model that trains, with every adapter off except what is ``kept``.

    Args:
        note: is appended to ``str()``, such as why a cache is not used.
    """

    def __init__(self, model: Any, kept: switch.Kept, note: str = "") -> None:
        self.model = model
        self.kept = kept
        self.note = note

    def __str__(self) -> str:
        layers = f"{len(switch.lora_layers(self.model))} LoRA layers"
        start = ", held to the model as it was when training started" if self.kept.weights else ""
        return f"{layers}{start}{self.note}"

    def states(self, arguments: dict[str, Any], chosen: Selection) -> Tensor:
        """(A, H) hidden states at the sampled aligned positions.

        Args:
            arguments: those of the tuned pass's decoder call, by name.
            chosen: the positions of this step.
        """
        if chosen.aligned == 0 and not is_sharded(self.model):
            return torch.empty(0, text_config(self.model).hidden_size)
        return self.states_at(chosen.index[: chosen.aligned], arguments, chosen.total)

    @eager_around
    def states_at(self, index: Tensor, arguments: dict[str, Any], T: int) -> Tensor:
        """(n, H) hidden states at ``index`` (n,) of the flattened (B * T) batch.

        The pass runs even if ``index`` is empty: other processes may be waiting for this one to gather weights.
        """
        row, column = index // T, index % T
        length = int(column.max()) + 1 if len(column) else 1
        hidden = decoder.hidden_states(self.model, arguments, length, self.kept)  # (B, length or T, H)
        return hidden.flatten(0, 1)[(row * hidden.shape[1] + column).to(hidden.device)]

    def fills_cache(self, arguments: dict[str, Any]) -> bool:
        """See :func:`.decoder.fills_cache`."""
        return decoder.fills_cache(decoder_of(self.model), arguments)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """From hidden states (n, H) to logits (n, V).

        It is the model's head itself if that is a frozen matrix or a sharded ``nn.Linear``: then the loss computes
        tuned and base logits in one product or one call.
        """
        head = head_of(self.model)
        changed = {id(parameter) for parameter, _ in self.kept.weights}
        same = is_frozen_matrix(head) or sharded_linear(head) is not None
        same = same and not any(id(parameter) in changed for parameter in head.parameters())
        return head if same else self._head_with_lora_off

    def _head_with_lora_off(self, states: Tensor) -> Tensor:
        # a FamilyHead is new at each call, and the modules around a new module take a search of the whole process
        with switch.switched_off(self.model.get_output_embeddings(), self.kept):
            logits: Tensor = head_of(self.model)(states)
        return logits
