"""Sampling: the drawn token is the one that the definition of a nucleus gives for the number drawn."""

from __future__ import annotations

import math
import random

import pytest
import torch

from selfaug.self_dialogue import sampling
from selfaug.self_dialogue.sampling import NucleusSampler, Sampling, draws


def by_definition(scores, number, temperature, top_p):
    """In loops over tokens, float64."""
    weights = [math.exp(score / temperature) for score in scores]
    ranked = sorted(((weight / sum(weights), -token) for token, weight in enumerate(weights)), reverse=True)
    kept, mass = [], 0.0
    for probability, token in ranked:
        kept.append((probability, -token))
        mass += probability
        if mass >= top_p:
            break
    reached = 0.0
    for probability, token in kept:
        reached += probability
        if reached > number * mass:
            return token
    return kept[-1][1]


@pytest.mark.parametrize(
    ("number", "token"), [(0.0, 2), (0.5, 2), (0.624, 2), (0.626, 0), (0.999, 0)], ids=lambda value: str(value)
)
def test_half_and_three_tenths_make_a_nucleus_of_eight_tenths(number, token):
    scores = torch.tensor([[0.3, 0.15, 0.5, 0.05]]).log()
    assert sampling.draw(scores, torch.tensor([number]), Sampling(1.0, 0.75)).tolist() == [token]


@pytest.mark.parametrize("candidates", [4, 512], ids=["candidates-too-few", "candidates-enough"])
@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 0.9), (1.0, 1.0), (2.0, 0.5)])
def test_the_token_is_the_one_of_the_definition(monkeypatch, candidates, temperature, top_p):
    monkeypatch.setattr(sampling, "CANDIDATES", candidates)
    rng = random.Random(0)
    scores = [[rng.gauss(0, 3) for _ in range(50)] for _ in range(200)]
    numbers = [rng.random() for _ in scores]
    found = sampling.draw(torch.tensor(scores), torch.tensor(numbers), Sampling(temperature, top_p)).tolist()
    expected = [by_definition(row, number, temperature, top_p) for row, number in zip(scores, numbers)]
    assert found == expected


def test_a_row_is_drawn_the_same_in_any_company():
    rng = random.Random(1)
    scores = torch.tensor([[rng.gauss(0, 2) for _ in range(600)] for _ in range(8)])
    numbers = torch.tensor([rng.random() for _ in range(8)])
    together = sampling.draw(scores, numbers, Sampling()).tolist()
    alone = [sampling.draw(scores[i : i + 1], numbers[i : i + 1], Sampling()).item() for i in range(8)]
    assert together == alone


def test_numbers_belong_to_the_seed_the_dialogue_and_the_turn():
    assert draws(0, 1, 2, 3) == draws(0, 1, 2, 4)[:3]
    assert len({tuple(draws(*key, 3)) for key in [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 12, 0)]}) == 5
    assert draws(0, 0, 0, 2) == [0.9361609962320048, 0.8984062557952184]


def test_temperature_zero_leaves_the_choice_to_greedy_search():
    scores = torch.randn(2, 5)
    assert NucleusSampler(Sampling(0.0, 0.9), [[0.5], [0.5]], 3)(torch.zeros(2, 3), scores) is scores


def test_the_processor_leaves_one_token_possible_and_moves_on_through_its_numbers():
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
    sampler = NucleusSampler(Sampling(1.0, 1.0), [[0.1, 0.95]], prompt_length=4)
    assert sampler(torch.zeros(1, 4), scores).tolist() == [[0.0, -math.inf, -math.inf]]
    assert sampler(torch.zeros(1, 5), scores).tolist() == [[-math.inf, -math.inf, 0.0]]
