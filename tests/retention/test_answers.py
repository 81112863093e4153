from __future__ import annotations

import pytest
import torch

from selfaug.retention import answers
from selfaug.retention.answers import greedy
from selfaug.retention.bench import Bench
from selfaug.self_dialogue.chat import Ending


@pytest.fixture(scope="module")
def bench(tiny_model):
    return Bench(str(tiny_model), "float32", "cpu")


PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12], [13, 14]]


def answered(bench, ending, batch_size=3, limit=6):
    done = []
    bench.model.generation_config.eos_token_id = list(ending.tokens) or None
    found = greedy(bench.model, bench.tokenizer, PROMPTS, limit, ending, batch_size, done.append)
    return found, done


def test_answers_are_the_likeliest_tokens_whatever_else_is_in_the_batch(bench):
    found, done = answered(bench, bench.ending)
    for prompt, answer in zip(PROMPTS, found):
        ids = list(prompt)
        for _ in answer.ids:
            with torch.no_grad():
                ids.append(bench.model(torch.tensor([ids])).logits[0, -1].argmax().item())
        assert answer.ids == ids[len(prompt) :]
        assert len(answer.ids) == 6 or answer.ended
    assert done == [0, 3, 4]


def test_an_answer_holds_the_token_that_ended_it_and_none_after(bench):
    free, _ = answered(bench, Ending(()))
    second = free[0].ids[1]
    found, _ = answered(bench, Ending((second,)))
    at = free[0].ids.index(second)
    assert (found[0].ids, found[0].ended) == (free[0].ids[: at + 1], True)
    assert [answer.ended for answer in free] == [False] * 4


def test_a_template_that_spells_its_markers_out_ends_an_answer_with_a_string(bench):
    free, _ = answered(bench, Ending(()))
    text = bench.tokenizer.decode(free[0].ids)
    found, _ = answered(bench, Ending((), (text[2],)))
    assert found[0].ended
    assert found[0].text == text[: text.index(text[2])]
    assert text[2] in bench.tokenizer.decode(found[0].ids)
    assert text[2] not in bench.tokenizer.decode(found[0].ids[:-1])


def test_what_follows_the_string_that_ended_an_answer_is_cut_from_its_tokens_too(bench):
    row = bench.tokenizer("yes.User: no", add_special_tokens=False)["input_ids"]
    found = answers._answer(bench.tokenizer, row, Ending((), ("User:",)))
    assert (found.text, found.ended) == ("yes.", True)
    assert bench.tokenizer.decode(found.ids) == "yes.User:"
