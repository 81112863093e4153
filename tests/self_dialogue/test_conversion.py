"""From one format to another: what the new one can hold is there, and what it cannot is refused with its name."""

from __future__ import annotations

import hashlib
import json

import pytest
import tiny_chat

from selfaug.self_dialogue import cli, formats

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED, SAID = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
GOOD = {"messages": [ASKED, SAID]}
CALL = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
PLAIN = {
    "messages": GOOD,
    "prompt-completion": {"prompt": "Why?", "completion": "Because."},
    "prompt-completion-chat": {"prompt": [ASKED], "completion": [SAID]},
    "alpaca": {"instruction": "Why?", "input": "", "output": "Because."},
    "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
}


@pytest.fixture
def convert(tmp_path, jsonl, capsys):
    """The task's row as `mix` converts it, or what it says where it refuses."""

    def run(row, format, *options):
        task, talk, out = jsonl("task.jsonl", [row]), jsonl("talk.jsonl", [PLAIN[format]]), tmp_path / "out.jsonl"
        command = ["mix", "--task", str(task), "--dialogues", str(talk), "--out", str(out), "--format", format]
        code = cli.main([*command, "--overwrite", "--seed", "0", *options])
        said = capsys.readouterr().err
        if code:
            assert code == 1
            assert f"{task}:1: " in said
            return said
        made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        made.remove(PLAIN[format])
        return made[0]

    return run


@pytest.mark.parametrize("format", formats.FORMATS)
@pytest.mark.parametrize("before", formats.FORMATS)
def test_other_columns_come_along(convert, before, format):
    row = {**PLAIN[before], "id": 7, "source": {"page": [1, None]}, "score": 0.5}
    assert convert(row, format) == {**PLAIN[format], "id": 7, "source": {"page": [1, None]}, "score": 0.5}


@pytest.mark.parametrize("format", formats.FORMATS)
@pytest.mark.parametrize("before", formats.FORMATS)
@pytest.mark.parametrize("column", ["tools", "images", "image", "videos", "audios", "documents", "functions"])
def test_what_the_model_would_read_is_kept_or_refused_by_its_name(convert, before, format, column):
    row = {**PLAIN[before], column: ["x"]}
    made = convert(row, format)
    if before == format or {before, format} == {"messages", "prompt-completion-chat"}:
        assert made == {**PLAIN[format], column: ["x"]}
    else:
        assert f"column {column}" in made


@pytest.mark.parametrize("format", ["messages", "prompt-completion-chat", "alpaca", "sharegpt"])
@pytest.mark.parametrize("before", ["alpaca", "sharegpt"])
def test_a_system_column_becomes_the_system_message(convert, before, format):
    made = convert({**PLAIN[before], "system": "Be brief."}, format)
    turns = formats.messages(made, format)
    assert turns == [SYSTEM, ASKED, SAID]
    assert before == format or format == "alpaca" or "system" not in made


@pytest.mark.parametrize("before", ["messages", "prompt-completion", "prompt-completion-chat"])
@pytest.mark.parametrize("format", formats.FORMATS)
def test_a_system_column_where_the_format_has_none_is_refused(convert, before, format):
    made = convert({**PLAIN[before], "system": "Be brief."}, format)
    assert before == format or "column system" in made


def test_a_system_column_and_a_system_message_are_refused(convert):
    turns = [{"from": "system", "value": "Be long."}, *PLAIN["sharegpt"]["conversations"]]
    assert "column system" in convert({"conversations": turns, "system": "Be brief."}, "messages")


@pytest.mark.parametrize(
    ("turn", "name"),
    [
        ({**SAID, "tool_calls": CALL}, "tool_calls"),
        ({"role": "assistant", "content": None, "tool_calls": CALL}, "tool_calls"),
        ({**SAID, "name": "bob"}, "name"),
        ({**SAID, "reasoning_content": "hm"}, "reasoning_content"),
        ({**SAID, "weight": 0}, "weight"),
    ],
)
@pytest.mark.parametrize("format", formats.FORMATS)
def test_what_a_message_has_beside_its_text_is_kept_or_refused_by_its_name(convert, turn, name, format):
    made = convert({"messages": [ASKED, turn]}, format)
    if format == "messages":
        assert made == {"messages": [ASKED, turn]}
    elif format == "prompt-completion-chat":
        assert made == {"prompt": [ASKED], "completion": [turn]}
    else:
        assert f"message 2 has {name}, which {format} cannot hold" in made


def test_what_a_turn_of_sharegpt_has_beside_its_text_is_kept_or_refused(convert):
    row = {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because.", "weight": 0}]}
    assert convert(row, "messages") == {"messages": [ASKED, {**SAID, "weight": 0}]}
    assert "message 2 has weight" in convert(row, "alpaca")


@pytest.mark.parametrize("name", ["conversations", "prompt", "instruction", "completion", "output", "history"])
def test_a_column_that_the_new_format_would_read_otherwise_is_refused(convert, name):
    before, format = ("sharegpt", "alpaca") if name != "conversations" else ("messages", "sharegpt")
    assert f"column {name}" in convert({**PLAIN[before], name: "x"}, format)


def test_an_empty_system_message_is_not_the_same_as_none(convert):
    row = {"messages": [{"role": "system", "content": ""}, ASKED, SAID]}
    assert "the system message is empty" in convert(row, "alpaca")


def test_a_template_that_passes_over_a_message_is_refused(convert, tmp_path):
    template = "{% for m in messages if m.role != 'system' %}" + tiny_chat.CHATML.partition("%}")[2]
    tiny_chat.tokenizer(template).save_pretrained(tmp_path / "model")
    render = ["--render", "--tokenizer", str(tmp_path / "model")]
    said = convert({"messages": [SYSTEM, ASKED, SAID]}, "prompt-completion", *render)
    assert "the chat template does not show message 1 (system)" in said


def test_good_input_is_written_as_it_was_before(tmp_path, jsonl):
    """The hashes are of what the release before these checks wrote."""
    wanted = {
        "messages": "b708e163fde5c797",
        "prompt-completion": "f1e627475f88a45b",
        "prompt-completion-chat": "58aaa339c41e0010",
        "alpaca": "a142058c7e9adb5b",
        "sharegpt": "576e9ff656adddfa",
        "task": "55ac342b98315411",
    }
    plain = [{"messages": [{**ASKED, "content": f"Why {i}? \u2028ü"}, SAID]} for i in range(20)]
    own = [{**row, "id": i, "tags": ["a", None], "score": i / 3} for i, row in enumerate(plain)]
    talk, found = jsonl("talk.jsonl", plain), {}
    for name in wanted:
        task, out = jsonl("task.jsonl", own if name == "task" else plain), tmp_path / f"mixed-{name}.jsonl"
        options = [] if name == "task" else ["--format", name]
        assert cli.main(["mix", "--task", str(task), "--dialogues", str(talk), "--out", str(out), *options]) == 0
        found[name] = hashlib.sha256(out.read_bytes()).hexdigest()[:16]
    assert found == wanted
