"""Nucleus sampling in which every dialogue has random numbers of its own, whatever else is in its batch.

One uniform number decides one token: the token at which the cumulated probability, from the likeliest token down,
passes that number times the nucleus's mass. The numbers are Python's, so they are the same on a CPU and on a GPU and in
every release of torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

CANDIDATES = 512  # a nucleus is rarely larger, and finding so many is much cheaper than sorting a vocabulary


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 takes the likeliest token. top_p: the nucleus's share of the probability (Holtzman 2020)."""

    temperature: float = 0.7
    top_p: float = 0.9


def draws(seed: int, dialogue: int, turn: int, count: int) -> list[float]:
    """The random numbers of one turn of one dialogue."""
    rng = random.Random(f"selfaug {seed} {dialogue} {turn}")
    return [rng.random() for _ in range(count)]


class NucleusSampler:
    """A logits processor that leaves one token possible: greedy search then takes the one that was drawn.

    Args:
        numbers: per row of the batch, a uniform number for each token to come.
        prompt_length: tokens in the (padded) prompt.
    """

    def __init__(self, sampling: Sampling, numbers: Sequence[Sequence[float]], prompt_length: int) -> None:
        self.sampling = sampling
        self.numbers = torch.tensor(numbers, dtype=torch.float32)  # B, new tokens
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.sampling.temperature == 0:
            return scores
        self.numbers = self.numbers.to(scores.device)
        chosen = nucleus(scores, self.numbers[:, input_ids.shape[1] - self.prompt_length], self.sampling)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def nucleus(scores: torch.Tensor, numbers: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The drawn token of each row: () -> B int64. scores: B, V; numbers: B, in [0, 1)."""
    logits = scores.float() / sampling.temperature
    likeliest, order = logits.topk(min(CANDIDATES, logits.shape[1]), dim=1)  # B, C
    total = logits.logsumexp(1, keepdim=True)
    reached = (likeliest - total).exp().cumsum(1)  # B, C
    chosen = _pick(order, reached, numbers, sampling.top_p)
    wide = (reached[:, -1] < sampling.top_p).nonzero()[:, 0] if order.shape[1] < logits.shape[1] else []
    if len(wide):  # the nucleus is larger than the candidates
        sorted_logits, order = logits[wide].sort(dim=1, descending=True)
        reached = (sorted_logits - total[wide]).exp().cumsum(1)
        chosen[wide] = _pick(order, reached, numbers[wide], sampling.top_p)
    return chosen


def _pick(order: torch.Tensor, reached: torch.Tensor, numbers: torch.Tensor, top_p: float) -> torch.Tensor:
    """The nucleus is the smallest set of likeliest tokens whose probability is top_p or more."""
    last = (reached < top_p).sum(1, keepdim=True).clamp_(max=order.shape[1] - 1)  # B, 1: index of its last token
    target = numbers[:, None] * reached.gather(1, last)
    index = torch.minimum((reached <= target).sum(1, keepdim=True), last)
    return order.gather(1, index)[:, 0]
