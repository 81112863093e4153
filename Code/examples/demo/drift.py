"""What was kept: how far a tuned model has moved from its base, token by token, on the base model's own answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_SIZE = 128


@dataclass(frozen=True)
class Exchange:
    """A prompt and the base model's answer to it, as token ids."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Drift:
    """Means over the tokens of one answer; the negative log-likelihoods are in nats per token."""

    kl: float
    top1: float
    base_nll: float
    nll: float
    tokens: int


def token_drift(reference_logits: Tensor, logits: Tensor, tokens: Tensor) -> Tensor:
    """Per position: KL(base || tuned) in nats, top-1 agreement, and the token's NLL under base and tuned model.

    Args:
        reference_logits: (N, V), LoRA off.
        logits: (N, V), LoRA on.
        tokens: (N,), the token that follows each position.

    Returns:
        (N, 4) float32.
    """
    reference, tuned = reference_logits.float().log_softmax(-1), logits.float().log_softmax(-1)  # (N, V)
    kl = (reference.exp() * (reference - tuned)).sum(-1)
    top1 = (reference.argmax(-1) == tuned.argmax(-1)).float()
    base_nll, nll = (-log.gather(-1, tokens[:, None]).squeeze(-1) for log in (reference, tuned))
    return torch.stack([kl, top1, base_nll, nll], dim=-1)


@torch.no_grad()
def measure(model, exchanges: Sequence[Exchange], batch_size: int = 8) -> Iterator[tuple[int, Drift]]:
    """Yield (index, drift) for each exchange, the short ones first.

    Both distributions come from the one set of weights, LoRA on and off. Only hidden states are kept whole: the logits
    exist for ``CHUNK_SIZE`` positions at a time.

    Args:
        model: a PEFT model around a causal language model, in eval mode, with the adapter to measure active.
    """
    causal = model.get_base_model()
    order = sorted(range(len(exchanges)), key=lambda index: len(exchanges[index].prompt + exchanges[index].answer))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        input_ids, attention_mask, predicts = pad([exchanges[index] for index in batch])
        inputs = {"input_ids": input_ids.to(model.device), "attention_mask": attention_mask.to(model.device)}
        hidden = causal.model(**inputs, use_cache=False)[0][predicts]  # (N, H)
        with model.disable_adapter():
            reference_hidden = causal.model(**inputs, use_cache=False)[0][predicts]
        tokens = torch.tensor([token for index in batch for token in exchanges[index].answer], device=model.device)

        rows = []
        for part in torch.arange(len(tokens), device=model.device).split(CHUNK_SIZE):
            logits = causal.lm_head(hidden[part])
            with model.disable_adapter():
                reference_logits = causal.lm_head(reference_hidden[part])
            rows.append(token_drift(reference_logits, logits, tokens[part]).cpu())
        for index, answer in zip(batch, torch.cat(rows).split([len(exchanges[index].answer) for index in batch])):
            yield index, Drift(*answer.mean(0).tolist(), tokens=len(answer))


def pad(exchanges: Sequence[Exchange]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and attention mask, padded on the right, and a mask of the positions that predict an answer token."""
    longest = max(len(one.prompt) + len(one.answer) for one in exchanges)
    input_ids = torch.zeros(len(exchanges), longest, dtype=torch.long)  # (B, T)
    attention_mask, predicts = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
    for row, one in enumerate(exchanges):
        end = len(one.prompt) + len(one.answer)
        input_ids[row, :end] = torch.tensor(one.prompt + one.answer)
        attention_mask[row, :end] = 1
        predicts[row, len(one.prompt) - 1 : end - 1] = True
    return input_ids, attention_mask, predicts
