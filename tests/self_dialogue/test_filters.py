"""Each filter drops what it says and nothing that resembles it."""

from __future__ import annotations

import importlib.util
import json

import pytest

from selfaug.self_dialogue.evaluation_sets import EvaluationSets
from selfaug.self_dialogue.filters import REASONS, Filters, Limits

GOOD = "Bread rises because yeast turns sugar into gas, which the dough holds back."


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    ("role", "text", "finished", "reason"),
    [
        pytest.param("assistant", GOOD, True, "", id="good"),
        pytest.param("user", "Hello there", True, "", id="short-user-turn"),
        pytest.param("user", "", True, "stub", id="empty"),
        pytest.param("assistant", "Sure!", True, "stub", id="one-line-stub"),
        pytest.param("assistant", "Red\nBlue", True, "", id="short-but-two-lines"),
        pytest.param("assistant", GOOD, False, "unfinished", id="unfinished"),
        pytest.param("assistant", "It is so.\n<|im_start|>user and more", True, "role-marker", id="special-token"),
        pytest.param("assistant", "Well then, here it is.\nUser: thanks", True, "role-marker", id="role-at-line-start"),
        pytest.param("user", "### Instruction: write something", True, "role-marker", id="alpaca-marker"),
        pytest.param("user", "Tell me [INST] more", True, "role-marker", id="llama-marker"),
        pytest.param("user", "a <custom> token here", True, "role-marker", id="the-tokenizer's-own"),
        pytest.param("assistant", "The role of the user: to read, and to write.", True, "", id="a-colon-in-a-sentence"),
        pytest.param("assistant", "1 < 2 and <b>bold</b> is HTML here", True, "", id="html"),
        pytest.param("assistant", "It is good to eat. " * 12, True, "repetition", id="a-sentence-again-and-again"),
        pytest.param("assistant", "- eat more fruit\n- rest well now\n" * 3, True, "repetition", id="lines-again"),
        pytest.param("assistant", "so very " + "very " * 9 + "good it is", True, "repetition", id="one-word-again"),
        pytest.param(
            "assistant", "for i in range(3):\n    pass\n\n\n\nprint(i) and then stop", True, "", id="blank-lines"
        ),
    ],
)
def test_a_turn_is_judged_by_its_text(role, text, finished, reason):
    assert Filters(Limits(), specials=["<custom>"]).turn(role, text, finished) == reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param("I'm sorry, but I can't help with that.", "refusal", id="sorry"),
        pytest.param("I\u2019m sorry, but I can\u2019t help with that.", "refusal", id="typographic-apostrophe"),
        pytest.param("As an AI language model, I do not have feelings.", "refusal", id="as-an-ai"),
        pytest.param("I cannot answer this question about it.", "refusal", id="cannot"),
        pytest.param(
            "I'm sorry to hear that. " + " ".join(f"step{i}" for i in range(60)), "", id="sorry-and-then-help"
        ),
        pytest.param("Ice is not as dense as water, so it floats.", "", id="an-answer"),
    ],
)
def test_refusals_alone_are_dropped(answer, reason):
    assert Filters(Limits()).dialogue(talk("Why?", answer), 20) == reason


def test_one_good_answer_saves_a_dialogue_with_a_refusal():
    turns = talk("Why?", "I'm sorry, I can't.") + talk("And bread?", GOOD)
    assert Filters(Limits()).dialogue(turns, 20) == ""


def test_too_many_tokens_are_over_long():
    filters = Filters(Limits(max_tokens=20))
    assert filters.dialogue(talk("Why?", GOOD), 20) == ""
    assert filters.dialogue(talk("Why not?", GOOD), 21) == "over-long"


def test_the_same_words_in_another_dress_are_a_duplicate():
    filters = Filters(Limits())
    assert filters.dialogue(talk("Why does bread rise?", GOOD), 20) == ""
    assert filters.dialogue(talk("why does  bread rise", GOOD.upper()), 20) == "duplicate"
    assert filters.dialogue(talk("Why does cake rise?", GOOD), 20) == ""


def test_what_was_dropped_does_not_make_a_later_one_a_duplicate():
    filters = Filters(Limits(max_tokens=20))
    assert filters.dialogue(talk("Why?", GOOD), 30) == "over-long"
    assert filters.dialogue(talk("Why?", GOOD), 20) == ""


@pytest.mark.skipif(importlib.util.find_spec("datasketch") is None, reason="datasketch is not installed")
def test_almost_the_same_text_is_a_near_duplicate():
    long = " ".join(f"word{i}" for i in range(120))
    filters = Filters(Limits(near=0.8))
    assert filters.dialogue(talk("Why?", long), 20) == ""
    assert filters.dialogue(talk("Why?", long.replace("word60", "other")), 20) == "near-duplicate"
    assert filters.dialogue(talk("Why?", " ".join(f"thing{i}" for i in range(120))), 20) == ""


def test_the_report_counts_every_dialogue_once_and_leaves_out_filters_that_did_not_run():
    filters = Filters(Limits())
    for reason in ["", "stub", "stub", "duplicate"]:
        filters.count(reason)
    idle = {"near-duplicate": 0, "contaminated": 0}
    expected = {**dict.fromkeys(REASONS, 0), "stub": 2, "duplicate": 1}
    assert filters.report() == {"seen": 4, "kept": 1, **{k: n for k, n in expected.items() if k not in idle}}


@pytest.fixture
def evaluation(tmp_path):
    texts = [
        "The quick brown fox jumps over the lazy dog while the cat looks on from the wall",
        "Who wrote the book of hours?",
    ]
    (tmp_path / "eval.jsonl").write_text("".join(json.dumps({"q": {"text": [text]}}) + "\n" for text in texts))
    return EvaluationSets([tmp_path / "eval.jsonl"], size=8)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        pytest.param("say: QUICK brown fox jumps, over the lazy dog!", True, id="eight-words-of-it"),
        pytest.param("quick brown fox jumps over the lazy cat", False, id="seven-words-of-it"),
        pytest.param("Tell me, who wrote the book of hours?", True, id="a-short-text-whole"),
        pytest.param("who wrote the book of days", False, id="a-short-text-in-part"),
    ],
)
def test_a_run_of_words_from_an_evaluation_set_contaminates(evaluation, text, found):
    assert evaluation.overlaps(["nothing here", text]) is found
    assert Filters(Limits(), evaluation=evaluation).dialogue(talk("Go on.", text), 9) == (
        "contaminated" if found else ""
    )


def test_scripts_without_spaces_are_compared_by_character(tmp_path):
    (tmp_path / "eval.txt").write_text("法国的首都是哪一座城市\n", encoding="utf-8")
    evaluation = EvaluationSets([tmp_path / "eval.txt"], size=8)
    assert evaluation.overlaps(["请问法国的首都是哪一座城市呢"])
    assert not evaluation.overlaps(["请问德国的首都在哪里"])
