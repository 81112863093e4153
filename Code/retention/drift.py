"""What was kept: how far a tuned model has moved from its base, position by position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .readout import Readout

CHUNK_SIZE = 128
KL, REVERSE_KL, TOP1, BASE_NLL, NLL = range(5)


@dataclass(frozen=True)
class Stretch:
    """Token ids, of which the positions from ``first`` on are compared: each predicts the token after it."""

    ids: list[int]
    first: int
    predicts_last: bool = False  # whether the last position, whose next token is unknown, is compared, too

    @classmethod
    def of_answer(cls, prompt: list[int], answer: list[int]) -> Stretch:
        return cls(prompt + answer, len(prompt) - 1)

    @classmethod
    def of_input(cls, prompt: list[int]) -> Stretch:
        return cls(prompt, 0, predicts_last=True)

    def __len__(self) -> int:
        return len(self.ids) - self.first - (not self.predicts_last)

    def tokens(self) -> list[int]:
        """The token after each position; 0 where there is none."""
        return self.ids[self.first + 1 :] + [0] * self.predicts_last


def token_drift(reference_logits: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
    """Per position: KL(base || tuned) and KL(tuned || base) in nats, top-1 agreement, and the token's negative
    log-likelihood under base and tuned model.

    Args:
        reference_logits: (N, V), adapter off.
        logits: (N, V), adapter on.
        tokens: (N,), the token that follows each position.

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
    """Yield (index, figures of its positions as ``token_drift`` has them) for each stretch, the short ones first.

    Both distributions come from the one set of weights, adapter on and off. Only hidden states are kept whole: the
    logits exist for ``CHUNK_SIZE`` positions at a time.

    Args:
        model: a PEFT model around a causal language model, in eval mode, with the adapter to measure active.
    """
    readout = Readout(model.get_base_model())
    order = sorted(range(len(stretches)), key=lambda index: len(stretches[index].ids))
    for start in range(0, len(order), batch_size):
        batch = [stretches[index] for index in order[start : start + batch_size]]
        inputs = [tensor.to(model.device) for tensor in pad(batch)]
        states = readout.states(*inputs)  # (N, H)
        with model.disable_adapter():
            reference_states = readout.states(*inputs)
        tokens = torch.tensor([token for one in batch for token in one.tokens()], device=model.device)

        rows = []
        for part in torch.arange(len(tokens), device=model.device).split(CHUNK_SIZE):
            logits = readout.logits(states[part])
            with model.disable_adapter():
                reference_logits = readout.logits(reference_states[part])
            rows.append(token_drift(reference_logits, logits, tokens[part]).cpu())
        yield from zip(order[start : start + batch_size], torch.cat(rows).split([len(one) for one in batch]))


def pad(stretches: Sequence[Stretch]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and attention mask, padded on the right, and a mask of the positions that are compared: (B, T)."""
    longest = max(len(one.ids) for one in stretches)
    input_ids = torch.zeros(len(stretches), longest, dtype=torch.long)
    attention_mask, where = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
    for row, one in enumerate(stretches):
        input_ids[row, : len(one.ids)] = torch.tensor(one.ids)
        attention_mask[row, : len(one.ids)] = 1
        where[row, one.first : one.first + len(one)] = True
    return input_ids, attention_mask, where
