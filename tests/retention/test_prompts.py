from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfaug.retention import prompts
from selfaug.toolkit.errors import Refusal

SEVERAL = ["oak", "Oak tree"]
USER, ASSISTANT = {"role": "user", "content": "Which tree?"}, {"role": "assistant", "content": "oak"}


@pytest.fixture
def file(tmp_path):
    def write(*rows, name="task.jsonl"):
        path = tmp_path / name
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), "utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("row", "content", "accepted"),
    [
        pytest.param({"prompt": "Which tree?", "answer": "oak"}, [USER], ("oak",), id="prompt and answer"),
        pytest.param({"prompt": "Which tree?", "answer": SEVERAL}, [USER], tuple(SEVERAL), id="several accepted"),
        pytest.param({"prompt": [USER], "answer": "oak"}, [USER], ("oak",), id="prompt of messages"),
        pytest.param({"messages": [USER, ASSISTANT]}, [USER], ("oak",), id="messages with the answer"),
        pytest.param({"messages": [USER, ASSISTANT], "answer": "elm"}, [USER], ("elm",), id="the column counts more"),
        pytest.param({"messages": [USER], "answer": "oak"}, [USER], ("oak",), id="messages without the answer"),
        pytest.param({"prompt": "Q?\nA:", "completion": " oak"}, "Q?\nA:", (" oak",), id="prompt and completion"),
        pytest.param({"prompt": [USER], "completion": [ASSISTANT]}, [USER], ("oak",), id="conversational completion"),
    ],
)  # fmt: skip
def test_a_question_can_be_written_in_each_of_these_ways(file, row, content, accepted):
    (found,) = prompts.task(file(row))
    assert (found.content, found.accepted, found.answerable) == (content, accepted, None)


def test_answerable_is_read_and_a_count_takes_rows_evenly(file):
    rows = [{"prompt": str(n), "answer": "x", "answerable": n % 2 == 0} for n in range(6)]
    found = prompts.task(file(*rows), 3)
    assert [(one.text(), one.answerable) for one in found] == [("0", True), ("2", True), ("4", True)]


def test_a_plain_text_has_an_instruction_per_line(file):
    found = prompts.general(file("Name a bird.\n\n  Write a poem. \n", name="general.txt"))
    assert [(one.text(), one.where.rpartition(":")[2]) for one in found] == [
        ("Name a bird.", "1"),
        ("Write a poem.", "3"),
    ]


def test_rows_of_instructions_need_no_answer(file):
    found = prompts.general(file({"prompt": "Name a bird."}, {"messages": [USER, ASSISTANT]}))
    assert [one.text() for one in found] == ["Name a bird.", "Which tree?"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        pytest.param({"question": "?"}, "columns question: expected prompt and answer", id="other columns"),
        pytest.param({"prompt": "?"}, "no answer", id="no answer"),
        pytest.param({"prompt": "?", "answer": 5}, "answer is a text", id="a number"),
        pytest.param({"prompt": "?", "answer": []}, "answer is a text", id="no accepted answers"),
        pytest.param({"prompt": " ", "answer": "x"}, "prompt is no text", id="empty prompt"),
        pytest.param(
            {"prompt": "?", "answer": "x", "answerable": "yes"}, "answerable is true or false", id="answerable"
        ),
        pytest.param({"messages": [ASSISTANT]}, "nothing asks for it", id="an answer only"),
        pytest.param({"messages": [{"role": "poet", "content": ""}]}, "without a known role", id="role"),
        pytest.param(
            {"messages": [{"role": "user", "content": None}]}, "content of a message is no text", id="content"
        ),
        pytest.param({"messages": []}, "not a list with something in it", id="no messages"),
        pytest.param({"prompt": "?", "completion": 5}, "completion is no text", id="completion"),
        pytest.param({"prompt": "\ud800", "answer": "x"}, "prompt holds \\ud800, half of a character", id="surrogate"),
        pytest.param({"prompt": "?", "answer": ["\udfff"]}, "answer[0] holds \\udfff", id="surrogate in the answer"),
        pytest.param({"prompt": "?", "answer": "x", "tools": [{}]}, "column tools: no model", id="tools"),
        pytest.param({"messages": [USER, ASSISTANT], "system": "x"}, "column system: no model", id="system"),
        pytest.param({"messages": [{"role": ["user"], "content": ""}]}, "without a known role", id="role in a list"),
        pytest.param({"messages": [{**USER, "tool_calls": 5}]}, "tool_calls is not a list", id="tool calls"),
        pytest.param({"prompt": [USER], "completion": [USER]}, "does not end with the assistant", id="no answer in it"),
        pytest.param({"prompt": "?", "completion": [USER, ASSISTANT]}, "has several messages", id="two completions"),
        pytest.param('{"prompt": "?", "prompt": "!"}\n', "the key 'prompt' is there twice", id="a key twice"),
        pytest.param("[" * 100_000 + "\n", "nested deeper", id="nested"),
        pytest.param("[1]\n", "expected an object, found list: [1]", id="a list"),
        pytest.param("{\n", "expected JSON, found: ", id="no JSON"),
    ],
)
def test_a_bad_row_is_refused_with_its_file_and_line(file, row, problem):
    path = file({"prompt": "?", "answer": "x"}, row)
    with pytest.raises(Refusal) as caught:
        prompts.task(path)
    assert f"{path}:2: " in str(caught.value)
    assert problem in str(caught.value)


def test_bad_rows_are_reported_together_up_to_ten(file):
    with pytest.raises(Refusal) as caught:
        prompts.task(file(*[{"prompt": "?"}] * 12))
    assert str(caught.value).count("no answer") == 10


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_a_file_without_rows_and_one_that_is_not_there_are_refused(file, tmp_path, text):
    with pytest.raises(Refusal, match="no rows"):
        prompts.general(file(text, name="general.txt"))
    with pytest.raises(Refusal, match="there is no file"):
        prompts.general(tmp_path / "none.txt")


def test_messages_of_a_completion_before_the_answer_are_asked_too(file):
    turns = [{"role": "assistant", "content": "Wait."}, USER, ASSISTANT]
    (found,) = prompts.task(file({"prompt": [USER], "completion": turns}))
    assert found.content == [USER, *turns[:2]]
    assert found.accepted == (ASSISTANT["content"],)


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
@pytest.mark.parametrize("name", ["general.txt", "general.jsonl"])
def test_instructions_in_another_coding_are_refused_by_file_and_line(tmp_path, name, coding):
    (tmp_path / name).write_bytes('{"prompt": "Why?"}\n{"prompt": "café"}\n'.encode(coding))
    with pytest.raises(Refusal, match=r"UTF-8\n(.|\n)*general.\S+:[12]: "):
        prompts.general(tmp_path / name)


def test_marks_of_joined_files_are_no_part_of_an_instruction(tmp_path):
    (tmp_path / "general.txt").write_bytes(b"\xef\xbb\xbfWhy?\n\xef\xbb\xbfHow?\n")
    assert [one.text() for one in prompts.general(tmp_path / "general.txt")] == ["Why?", "How?"]


PARTS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800")
VALUES = st.recursive(PARTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
ROLES = st.sampled_from(["user", "assistant"])
TURN = st.fixed_dictionaries({}, optional=dict.fromkeys(("role", "content", "tool_calls"), VALUES | ROLES))
COLUMNS = ("messages", "prompt", "completion", "answer", "answerable", "tools")


@given(st.fixed_dictionaries({}, optional={name: VALUES | st.lists(TURN, max_size=3) for name in COLUMNS}))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_row_is_read_or_refused_by_its_line(row):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "task.jsonl")
        path.write_text(json.dumps(row) + "\n")
        for read in (prompts.task, prompts.general):
            said = f"{path}:1: "
            try:
                read(path)[0].text().encode()
            except Refusal as refused:
                said = str(refused)
            assert f"{path}:1: " in said
