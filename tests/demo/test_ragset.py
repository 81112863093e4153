from __future__ import annotations

import json
import re

import pytest
from ragset import KINDS, PASSAGES, UNANSWERABLE, generate, write


@pytest.fixture(scope="module")
def sets():
    return generate(train=200, test=100, seed=3)


def passages(sample):
    return re.findall(r"^\[\d\] (.*)$", sample.prompt, flags=re.MULTILINE)


def test_the_same_seed_gives_the_same_set_and_another_seed_another():
    assert generate(20, 10, seed=1) == generate(20, 10, seed=1)
    assert generate(20, 10, seed=1) != generate(20, 10, seed=2)


def test_a_known_sample_stays_as_it_is_on_every_python():
    assert generate(1, 0, seed=0)[0][0].prompt.splitlines()[-1] == KNOWN_QUESTION


def test_training_and_test_share_no_entity(sets):
    training, test = ({name for sample in samples for name in sample.names} for samples in sets)
    assert len(training) == 200 * PASSAGES
    assert len(test) == 100 * PASSAGES
    assert not training & test


def test_a_fifth_of_the_questions_has_no_answer(sets):
    for samples in sets:
        without = [sample for sample in samples if not sample.answerable]
        assert len(without) == len(samples) // 5
        assert {sample.answer for sample in without} == {UNANSWERABLE}


def test_an_answer_stands_in_the_passage_of_the_entity_asked_about_and_in_no_other(sets):
    for sample in [*sets[0], *sets[1]]:
        assert sample.names[0] in sample.prompt.splitlines()[-1]
        told = [passage for passage in passages(sample) if f" {sample.answer}" in passage]
        if sample.answerable:
            assert [sample.names[0] in passage for passage in told] == [True]
        else:
            assert told == []


def test_every_sample_has_three_passages_about_three_entities(sets):
    for sample in sets[1]:
        assert len(passages(sample)) == len(set(sample.names)) == PASSAGES
        assert all(sum(name in passage for passage in passages(sample)) == 1 for name in sample.names)


def test_the_third_wording_of_a_question_is_kept_for_the_test(sets):
    def asked(samples):
        lines = {(sample.names[0], sample.prompt.splitlines()[-1].removeprefix("Question: ")) for sample in samples}
        return {question.replace(name, "{}") for name, question in lines}

    held_out = {attribute.questions[2] for kind in KINDS for attribute in kind.attributes}
    assert not asked(sets[0]) & held_out
    assert asked(sample for sample in sets[1] if sample.held_out_wording) <= held_out
    assert 15 < sum(sample.held_out_wording for sample in sets[1]) < 50


def test_files_hold_one_row_per_sample_in_the_form_of_the_training_script(tmp_path):
    training, test = write(tmp_path, train=4, test=2)
    rows = [json.loads(line) for line in training.read_text(encoding="utf-8").splitlines()]
    assert [[message["role"] for message in row["messages"]] for row in rows] == [["user", "assistant"]] * 4
    assert [list(row) for row in rows] == [["messages"]] * 4
    assert len(test.read_text(encoding="utf-8").splitlines()) == 2


KNOWN_QUESTION = "Question: In which town is Paharth Textiles based?"
