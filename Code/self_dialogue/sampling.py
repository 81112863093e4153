"""Nucleus sampling that gives every dialogue its own random numbers, so that a dialogue does not depend on its batch.
The sampling of ``transformers.generate`` would draw for the whole batch at once.

One uniform number chooses one token: going down from the likeliest token, the first at which the cumulated probability
exceeds the number times the probability of the whole nucleus. The numbers come from Python's generator, so they are the
same on a CPU, on a GPU and in every release of torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

CANDIDATES = 512  # a nucleus is rarely larger, and taking the top 512 is much cheaper than sorting the vocabulary


@dataclass(frozen=True)
class Sampling:
    """Settings of nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751).

    temperature: 0 takes the likeliest token. top_p: the probability that the nucleus covers.
    """

    temperature: float = 0.7
    top_p: float = 0.9


def draws(seed: int, dialogue: int, turn: int, count: int) -> list[float]:
    """``count`` random numbers in [0, 1) for one turn of one dialogue."""
    rng = random.Random(f"selfaug {seed} {dialogue} {turn}")
    return [rng.random() for _ in range(count)]


class NucleusSampler:
    """A logits processor that draws a token and excludes every other, so that greedy search takes the drawn token.

    Args:
        numbers: for each row of the batch, one uniform number per new token.
        prompt_length: tokens in the padded prompt.
    """

    def __init__(self, sampling: Sampling, numbers: Sequence[Sequence[float]], prompt_length: int) -> None:
        self.sampling = sampling
        self.numbers = torch.tensor(numbers, dtype=torch.float32)  # B, new tokens
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.sampling.temperature == 0:
            return scores
        self.numbers = self.numbers.to(scores.device)
        chosen = draw(scores, self.numbers[:, input_ids.shape[1] - self.prompt_length], self.sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def draw(scores: torch.Tensor, numbers: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The drawn token of each row, (B,) int64.

    Args:
        scores: (B, V) logits.
        numbers: (B,) in [0, 1).
    """
    logits = scores.float() / sampling.temperature
    likeliest, order = logits.topk(min(CANDIDATES, logits.shape[1]), dim=1)  # B, C
    total = logits.logsumexp(1, keepdim=True)
    reached = (likeliest - total).exp().cumsum(1)  # B, C
    chosen = _pick(order, reached, numbers, sampling.top_p)
    wide: Any = (reached[:, -1] < sampling.top_p).nonzero()[:, 0] if order.shape[1] < logits.shape[1] else []
    if len(wide):  # the nucleus is larger than the candidates
        sorted_logits, order = logits[wide].sort(dim=1, descending=True)
        reached = (sorted_logits - total[wide]).exp().cumsum(1)
        chosen[wide] = _pick(order, reached, numbers[wide], sampling.top_p)
    return chosen


def _pick(order: torch.Tensor, reached: torch.Tensor, numbers: torch.Tensor, top_p: float) -> torch.Tensor:
    """The drawn token of each row. The nucleus is the smallest set of likeliest tokens with a probability of top_p."""
    last = (reached < top_p).sum(1, keepdim=True).clamp_(max=order.shape[1] - 1)  # B, 1: the nucleus's last token
    target = numbers[:, None] * reached.gather(1, last)
    index = torch.minimum((reached <= target).sum(1, keepdim=True), last)
    return order.gather(1, index)[:, 0]
