"""Logits of any causal language model, for a chunk of positions at a time, so that the full logits never exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ChunkedLogits:
    """Splits a model's forward pass into two: hidden states up to the head, and logits from hidden states.

    Most models return the output of their head. Others scale or cap that output (Gemma 2, Cohere, Granite): for these,
    the model's own forward pass over a single token computes the logits, while a hook hands our hidden states to the
    head. A model without a known head computes the full logits in the first step.
    """

    def __init__(self, causal: Any) -> None:
        self.causal, self.head = causal, causal.get_output_embeddings()
        self.one = torch.ones(1, 1, dtype=torch.long, device=causal.device)
        self.kind = "whole" if self.head is None else self._kind()

    @torch.no_grad()
    def states(self, input_ids: Tensor, attention_mask: Tensor, where: Tensor) -> Tensor:
        """(N, H): the states from which :meth:`logits` computes the logits of the N positions where ``where`` is true.

        Args:
            input_ids, attention_mask: (B, T).
            where: (B, T) bool.
        """
        if self.kind == "whole":
            return self._forward(input_ids, attention_mask)[where]
        taken: list[Tensor] = []

        def take(head: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            taken.append(args[0][where])
            return (args[0][:, :1], *args[1:])

        with _hooked(self.head.register_forward_pre_hook(take)):
            self._forward(input_ids, attention_mask)
        return taken[0]

    @torch.no_grad()
    def logits(self, states: Tensor) -> Tensor:
        """(N, V) logits from (N, H) states."""
        if self.kind == "whole":
            return states
        if self.kind == "head":
            logits: Tensor = self.head(states)
            return logits

        def give(head: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (states[None], *args[1:])

        with _hooked(self.head.register_forward_pre_hook(give)):
            return self._forward(self.one, self.one)[0]

    def _forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        output = self.causal(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        logits: Tensor = output.logits
        return logits

    @torch.no_grad()
    def _kind(self) -> str:
        """How the logits come from the head, tried on a single token: "head": they are its output; "forward": the model
        changes its output; "whole": neither way works.
        """
        returned: list[Any] = []
        with _hooked(self.head.register_forward_hook(lambda head, args, output: returned.append((args, output)))):
            logits = self._forward(self.one, self.one)
        if len(returned) != 1 or len(returned[0][0]) != 1 or returned[0][1].shape != logits.shape:
            return "whole"
        return "head" if torch.equal(returned[0][1].to(logits.dtype), logits) else "forward"


class _hooked:
    def __init__(self, handle: Any) -> None:
        self.handle = handle

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.handle.remove()
