from __future__ import annotations

from selfaug.retention import prompts
from selfaug.retention.instructions import BASIC, INSTRUCTIONS


def test_instructions_are_many_and_each_is_there_once():
    assert len(INSTRUCTIONS) >= 200
    assert len(set(INSTRUCTIONS)) == len(INSTRUCTIONS)
    assert all(line == line.strip() and len(line) > 10 for line in INSTRUCTIONS)
    assert INSTRUCTIONS[: len(BASIC)] == BASIC


def test_they_are_what_is_asked_without_a_file():
    asked = prompts.general(None)
    assert [prompt.text() for prompt in asked] == list(INSTRUCTIONS)
    assert asked[0].content == [{"role": "user", "content": INSTRUCTIONS[0]}]


def test_a_count_takes_them_evenly_over_the_groups():
    assert prompts.spread("abcdef", 3) == ["a", "c", "e"]
    assert prompts.spread("abc", 9) == ["a", "b", "c"]
    assert prompts.spread("abc", None) == ["a", "b", "c"]
