"""How far a tuned model has moved from its base model, position by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .chunked_logits import ChunkedLogits

CHUNK_SIZE = 128
KL, REVERSE_KL, TOP1, BASE_NLL, NLL = range(5)


@dataclass(frozen=True)
class Stretch:
    """Token ids of which the positions from ``first`` on are compared. Each position predicts the next token."""

    ids: list[int]
    first: int
    predicts_last: bool = False  # whether to compare the last position, too, whose next token is unknown

    @classmethod
    def of_answer(cls, prompt: list[int], answer: list[int]) -> Stretch:
        return cls(prompt + answer, len(prompt) - 1)

    @classmethod
    def of_input(cls, prompt: list[int]) -> Stretch:
        return cls(prompt, 0, predicts_last=True)

    def __len__(self) -> int:
        return len(self.ids) - self.first - (not self.predicts_last)

    def tokens(self) -> list[int]:
        """The token after each position; 0 after the last."""
        return self.ids[self.first + 1 :] + [0] * self.predicts_last


def token_drift(reference_logits: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
    """Figures of each position: KL(base || tuned) and KL(tuned || base) in nats, top-1 agreement, and the negative
    log-likelihood of the next token under the base model and under the tuned model.

    Args:
        reference_logits: (N, V), with the adapter off.
        logits: (N, V), with the adapter on.
        tokens: (N,), the next token of each position.

    Returns:
        (N, 5) float32, in the order of ``KL, REVERSE_KL, TOP1, BASE_NLL, NLL``.
    """
    reference, tuned = reference_logits.float().log_softmax(-1), logits.float().log_softmax(-1)  # (N, V)
    top1 = (reference.argmax(-1) == tuned.argmax(-1)).float()
    base_nll, nll = (-log.gather(-1, tokens[:, None]).squeeze(-1) for log in (reference, tuned))
    shift = reference - tuned
    kl, reverse_kl = torch.linalg.vecdot(reference.exp(), shift), -torch.linalg.vecdot(tuned.exp(), shift)
    return torch.stack([kl, reverse_kl, top1, base_nll, nll], dim=-1)


@torch.no_grad()
def measure(model: Any, stretches: Sequence[Stretch], batch_size: int = 8) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of a stretch, figures of its positions from :func:`token_drift`), the short stretches first.

    Both distributions come from the same weights, with the adapter on and off. Logits exist for ``CHUNK_SIZE``
    positions at a time.

    Args:
        model: a PEFT model around a causal language model, in eval mode. The adapter to measure is active.
    """
    chunked = ChunkedLogits(model.get_base_model())
    order = sorted(range(len(stretches)), key=lambda index: len(stretches[index].ids))
    for start in range(0, len(order), batch_size):
        batch = [stretches[index] for index in order[start : start + batch_size]]
        inputs = [tensor.to(model.device) for tensor in pad(batch)]
        states = chunked.states(*inputs)  # (N, H)
        with model.disable_adapter():
            reference_states = chunked.states(*inputs)
        tokens = torch.tensor([token for one in batch for token in one.tokens()], device=model.device)

        rows = []
        for part in torch.arange(len(tokens), device=model.device).split(CHUNK_SIZE):
            logits = chunked.logits(states[part])
            with model.disable_adapter():
                reference_logits = chunked.logits(reference_states[part])
            rows.append(token_drift(reference_logits, logits, tokens[part]).cpu())
        yield from zip(order[start : start + batch_size], torch.cat(rows).split([len(one) for one in batch]))


def pad(stretches: Sequence[Stretch]) -> tuple[Tensor, Tensor, Tensor]:
    """(token ids, attention mask, mask of the positions to compare), each (B, T), padded on the right."""
    longest = max(len(one.ids) for one in stretches)
    input_ids = torch.zeros(len(stretches), longest, dtype=torch.long)
    attention_mask, where = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
    for row, one in enumerate(stretches):
        input_ids[row, : len(one.ids)] = torch.tensor(one.ids)
        attention_mask[row, : len(one.ids)] = 1
        where[row, one.first : one.first + len(one)] = True
    return input_ids, attention_mask, where
