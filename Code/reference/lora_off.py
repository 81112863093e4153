"""The reference that LoRA training computes: hidden states from an extra pass with LoRA off, and the model's head."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from .. import copies
from ..eager import eager_around
from ..family import decoder_of, head_of, text_config
from ..head import is_frozen_matrix, is_sharded, sharded_linear
from ..positions import Selection, at, length_of
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
        hidden = self._hidden(arguments, chosen.length)
        return at(hidden, chosen.beside(hidden).index[: chosen.aligned], chosen.total)

    def all_states(self, arguments: dict[str, Any], chosen: Selection) -> Tensor:
        """(N, H) hidden states at all aligned positions, also those that are not in the sample."""
        hidden = self._hidden(arguments, length_of(chosen.all_aligned, chosen.total))
        return at(hidden, copies.on_device(hidden.device, chosen.all_aligned)[0], chosen.total)

    @eager_around
    def _hidden(self, arguments: dict[str, Any], length: int) -> Tensor:
        """(B, length or T, H). The pass runs even if no position is needed: other processes may be waiting for this one
        to gather weights.
        """
        return decoder.hidden_states(self.model, arguments, max(1, length), self.kept)

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
