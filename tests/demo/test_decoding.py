from __future__ import annotations

import decoding
import pytest
import torch
from transformers import AutoModelForCausalLM

PROMPTS = [[5, 6, 7, 8, 9, 10], [11], [12, 13, 14], [15, 16]]


@pytest.fixture(scope="module")
def model(tiny_model):
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    with torch.no_grad():  # a random model repeats one token for ever; far larger weights make it wander
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def one_by_one(model, prompt, limit, ends):
    """The answer without a batch and without a cache."""
    ids = list(prompt)
    for _ in range(limit):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_answers_are_those_of_one_prompt_at_a_time_without_a_cache(model, batch_size):
    free = [one_by_one(model, prompt, 12, ()) for prompt in PROMPTS]
    ends = {free[0][7], free[1][2]}
    expected = [one_by_one(model, prompt, 12, ends) for prompt in PROMPTS]
    assert len({len(answer) for answer in expected}) > 2, "rows that end at different steps are what is tested"
    found = dict(decoding.answers(model, PROMPTS, 12, ends, batch_size))
    assert [found[index] for index in range(len(PROMPTS))] == expected


def test_a_row_that_has_ended_is_no_longer_computed(model, monkeypatch):
    sizes = []
    forward = model.forward

    def counted(*args, input_ids, **given):
        sizes.append(len(input_ids))
        return forward(*args, input_ids=input_ids, **given)

    monkeypatch.setattr(model, "forward", counted)
    free = dict(decoding.answers(model, PROMPTS, 6, (), 4))
    assert sizes == [4] * 6
    sizes.clear()
    list(decoding.answers(model, PROMPTS, 6, {free[0][0]}, 4))
    assert sizes[0] == 4
    assert max(sizes[1:]) < 4


def test_no_prompts_need_no_model():
    assert list(decoding.answers(None, [], 5, (), 2)) == []
