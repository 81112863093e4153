from __future__ import annotations

import pytest
import torch

from selfaug.retention import answers
from selfaug.retention.answers import greedy, has_list, one_word
from selfaug.retention.base_model import BaseModel
from selfaug.toolkit.chat import Ending


@pytest.fixture(scope="module")
def base_model(tiny_model):
    return BaseModel(str(tiny_model), "float32", "cpu")


PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12], [13, 14]]


def answered(base_model, ending, batch_size=3, limit=6):
    done = []
    base_model.model.generation_config.eos_token_id = list(ending.tokens) or None
    found = greedy(base_model.model, base_model.tokenizer, PROMPTS, limit, ending, batch_size, done.append)
    return found, done


def test_answers_are_the_likeliest_tokens_whatever_else_is_in_the_batch(base_model):
    found, done = answered(base_model, base_model.ending)
    for prompt, answer in zip(PROMPTS, found):
        ids = list(prompt)
        for _ in answer.ids:
            with torch.no_grad():
                ids.append(base_model.model(torch.tensor([ids])).logits[0, -1].argmax().item())
        assert answer.ids == ids[len(prompt) :]
        assert len(answer.ids) == 6 or answer.ended
    assert done == [0, 3, 4]


def test_an_answer_holds_the_token_that_ended_it_and_none_after(base_model):
    free, _ = answered(base_model, Ending(()))
    second = free[0].ids[1]
    found, _ = answered(base_model, Ending((second,)))
    at = free[0].ids.index(second)
    assert (found[0].ids, found[0].ended) == (free[0].ids[: at + 1], True)
    assert [answer.ended for answer in free] == [False] * 4


def test_a_template_that_spells_its_markers_out_ends_an_answer_with_a_string(base_model):
    free, _ = answered(base_model, Ending(()))
    text = base_model.tokenizer.decode(free[0].ids)
    found, _ = answered(base_model, Ending((), (text[2],)))
    assert found[0].ended
    assert found[0].text == text[: text.index(text[2])]
    assert text[2] in base_model.tokenizer.decode(found[0].ids)
    assert text[2] not in base_model.tokenizer.decode(found[0].ids[:-1])


def test_what_follows_the_string_that_ended_an_answer_is_cut_from_its_tokens_too(base_model):
    row = base_model.tokenizer("yes.User: no", add_special_tokens=False)["input_ids"]
    found = answers._answer(base_model.tokenizer, row, Ending((), ("User:",)))
    assert (found.text, found.ended) == ("yes.", True)
    assert base_model.tokenizer.decode(found.ids) == "yes.User:"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("Tips:\n- walk\n- swim", True, id="dashes"),
        pytest.param("1. walk\n2. swim", True, id="numbers"),
        pytest.param("(a) walk\n(b) swim", True, id="letters in brackets"),
        pytest.param("\u2022 walk\n\u2022 swim", True, id="bullets"),
        pytest.param("  * walk\n\n  * swim", True, id="indented, with a line between"),
        pytest.param("1. walk", False, id="a single item"),
        pytest.param("It was in 1990. A walk - and 2. a swim.", False, id="within a line"),
        pytest.param("-5 degrees\n-6 degrees", False, id="negative numbers"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_a_list_is_two_lines_with_a_bullet_number_or_letter(text, found):
    assert has_list(text) is found


@pytest.mark.parametrize(("text", "found"), [("Oslo.", True), (" \n", True), ("in Oslo", False)])
def test_one_word_or_none_is_one_word(text, found):
    assert one_word(text) is found
