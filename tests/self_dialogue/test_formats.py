"""Every format to messages and back, and what is wrong with a row that is none."""

from __future__ import annotations

import pytest

from selfaug.self_dialogue import formats

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
MORE, LAST = {"role": "user", "content": "And so?"}, {"role": "assistant", "content": "So it is."}


@pytest.mark.parametrize("turns", [[ASKED, SAID], [SYSTEM, ASKED, SAID], [SYSTEM, ASKED, SAID, MORE, LAST]], ids=len)
@pytest.mark.parametrize("format", [name for name in formats.FORMATS if name != "prompt-completion"])
def test_a_conversation_survives_the_way_there_and_back(format, turns):
    made = formats.row(turns, format)
    assert formats.detect(made) == format
    assert formats.messages(made, format) == turns


@pytest.mark.parametrize(
    ("row", "format", "turns"),
    [
        pytest.param({"prompt": "Why?", "completion": "Because."}, "prompt-completion", [ASKED, SAID], id="strings"),
        pytest.param(
            {"instruction": "Add", "input": "1 and 2", "output": "3"},
            "alpaca",
            [{"role": "user", "content": "Add\n1 and 2"}, {"role": "assistant", "content": "3"}],
            id="alpaca-input",
        ),
        pytest.param(
            {"id": 7, "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
            "sharegpt",
            [ASKED, SAID],
            id="sharegpt",
        ),
    ],
)
def test_rows_as_others_write_them_are_read(row, format, turns):
    assert formats.detect(row) == format
    assert formats.messages(row, format) == turns


@pytest.mark.parametrize(
    ("row", "format", "what"),
    [
        ({"text": "x"}, "messages", "columns text: none of messages"),
        ({"messages": []}, "messages", "messages is not a list with something in it"),
        ({"messages": [ASKED]}, "messages", "no message of the assistant"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "without a known role"),
        ({"messages": [ASKED, {"role": "assistant", "content": 3}]}, "messages", "is no text"),
        ({"prompt": "Why?", "completion": None}, "prompt-completion", "completion is no text: None"),
        ({"conversations": [{"from": "cat", "value": "x"}]}, "sharegpt", 'without a known "from"'),
        ({"instruction": "a", "output": 3}, "alpaca", "output is no text: 3"),
        ({"prompt": "a", "completion": "b"}, "messages", "the file began as messages, this row is prompt-completion"),
    ],
)
def test_a_malformed_row_is_told_what_is_wrong_with_it(row, format, what):
    with pytest.raises(ValueError, match=what.replace("(", "\\(")):
        formats.messages(row, format)


def test_a_bare_prompt_cannot_hold_several_turns():
    assert formats.row([ASKED, SAID], "prompt-completion") == {"prompt": "Why?", "completion": "Because."}
    with pytest.raises(ValueError, match="--render"):
        formats.row([ASKED, SAID, MORE, LAST], "prompt-completion")
