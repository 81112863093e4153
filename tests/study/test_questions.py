from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import questions
import ragset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sandbox import StepFailed


def wordings(index):
    """Each kind's question templates of one number, with the entity cut out."""
    return {
        part
        for kind in ragset.KINDS
        for attribute in kind.attributes
        for part in [attribute.questions[index].split("{}")[0]]
        if part
    }


def test_the_test_is_the_same_for_every_seed_and_training_is_not():
    (first, test), (second, same) = (questions.synthetic(12, 20, seed) for seed in (0, 1))
    assert test == same
    assert first != second


def test_every_test_question_has_the_wording_that_is_held_out():
    training, test = questions.synthetic(30, 40, 0)
    asked = [row["prompt"].split("Question: ")[1] for row in test]
    known = [row["messages"][0]["content"].split("Question: ")[1] for row in training]
    assert all(row["held_out_wording"] for row in test)
    assert all(any(text.startswith(begin) for begin in wordings(2)) for text in asked)
    assert not any(text.startswith(tuple(wordings(2) - wordings(0) - wordings(1))) for text in known)


def test_a_longer_context_has_the_same_questions_and_the_same_answers():
    (short, test), (long, same) = (questions.synthetic(40, 20, 3, unrelated) for unrelated in (0, 30))
    assert test == same
    for few, many in zip(short, long):
        (before, asked), (after, same_question) = (parts(row) for row in (few, many))
        assert (asked, few["messages"][1]) == (same_question, many["messages"][1])
        assert len(set(after)) == 33, "no passage twice"
        assert [line for line in after if line in before] == before, "the sample's own, in their order"


def parts(row):
    """(passages, question) of a training row."""
    passages, question = row["messages"][0]["content"].split("\n\n")
    return [line.split("] ", 1)[1] for line in passages.splitlines()[1:]], question


def test_no_entity_of_the_test_is_in_training():
    training, test = questions.synthetic(400, 400, 2)  # so many that names would meet by chance
    names = {name for row in test for name in row["names"]}
    assert not any(name in row["messages"][0]["content"] for row in training for name in names)


def lines(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def own(tmp_path):
    chat = [{"messages": questions.messages({"prompt": f"q{n}", "answer": f"a{n}"})} for n in range(9)]
    plain = [{"prompt": f"t{n}", "answer": f"b{n}", "answerable": n > 0} for n in range(7)]
    return lines(tmp_path / "train.jsonl", chat), lines(tmp_path / "test.jsonl", plain)


def test_a_set_of_the_users_own_is_drawn_by_the_seed_and_its_test_is_not(own):
    (first, test), (second, same) = (questions.of_files(*own, 5, 4, seed) for seed in (0, 1))
    assert len(first) == 5
    assert first != second
    assert test == same
    assert set(test[0]) == {"prompt", "answer", "answerable"}
    assert [turn["role"] for turn in first[0]["messages"]] == ["user", "assistant"]


def test_too_few_rows_are_an_error_that_names_the_option(own):
    with pytest.raises(StepFailed, match=r"at least 10 rows, found 9.*--train 9"):
        questions.of_files(*own, 10, 4, 0)


def test_a_prompt_in_both_files_or_one_file_for_both_is_refused(own, tmp_path):
    train, test = own
    with pytest.raises(StepFailed, match="expected no prompt in both, found 7 prompts"):
        questions.of_files(test, test, 5, 4, 0)
    with test.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "q3 ", "answer": "a3"}) + "\n")
    with pytest.raises(StepFailed, match='found 1 prompt, such as "q3"'):
        questions.of_files(train, test, 5, 4, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "expected JSON, found"),
        ("[1]", "found list"),
        ('{"question": "x"}', "found the columns question"),
        ('{"prompt": "x", "answer": 3}', "both texts"),
        ('{"messages": [{"role": "user", "content": "x"}]}', "found the columns messages"),
        ('{"messages": [{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]}', "expected rows"),
        ('{"messages": 3}', "expected rows"),
        ('{"prompt": "\\ud800", "answer": "a"}', r"prompt holds .ud800, half of a character"),
        ('{"prompt": "x", "answer": "a", "tools": [1]}', "column tools: the study cannot hold it"),
        ('{"prompt": "x", "answer": "a", "system": "b"}', "column system: the study cannot hold it"),
        ('{"prompt": "x", "answer": "a", "answerable": "no"}', 'answerable to be true or false; found "no"'),
        (
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "name": "z"}]}',
            "both texts",
        ),
        (
            '{"answer": "z", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}',
            "column answer: messages are there already",
        ),
        ('{"prompt": "x", "answer": "a", "answer": "b"}', "the key 'answer' is there twice"),
        ("[" * 100_000, "nested deeper"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, text, said):
    file = tmp_path / "train.jsonl"
    file.write_text('{"prompt": "p", "answer": "a"}\n\n' + text + "\n", encoding="utf-8")
    with pytest.raises(StepFailed, match=said) as failure:
        questions.read(file)
    assert "train.jsonl:3: " in str(failure.value)


def test_a_file_that_is_not_there_is_an_error_and_no_traceback(tmp_path):
    with pytest.raises(StepFailed, match="cannot be read"):
        questions.read(tmp_path / "none.jsonl")


def test_a_mark_is_no_part_of_a_row_and_another_coding_is_refused_by_line(tmp_path):
    file, line = tmp_path / "train.jsonl", b'{"prompt": "p", "answer": "a"}\n'
    file.write_bytes(b"\xef\xbb\xbf" + line + b"\xef\xbb\xbf" + line)
    assert questions.read(file) == [{"prompt": "p", "answer": "a"}] * 2
    for content, number in ((line.decode().encode("utf-16"), 1), (line + b'{"prompt": "\xe9"}', 2)):
        file.write_bytes(content)
        with pytest.raises(StepFailed, match=f"cannot be read: (.|\n)*train.jsonl:{number}: "):
            questions.read(file)


PARTS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800")
VALUES = st.recursive(PARTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
ROLES = st.sampled_from(["user", "assistant"])
TURN = st.fixed_dictionaries({}, optional=dict.fromkeys(("role", "content", "tool_calls"), VALUES | ROLES))
COLUMNS = ("messages", "prompt", "answer", "answerable", "tools")


@given(st.fixed_dictionaries({}, optional={name: VALUES | st.lists(TURN, max_size=3) for name in COLUMNS}))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_row_is_read_or_refused_by_its_line(row):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.jsonl")
        path.write_text(json.dumps(row) + "\n")
        said = f"{path}:1: "
        try:
            questions.write(Path(folder, "out", "rows.jsonl"), questions.read(path))
        except StepFailed as error:
            said = str(error)
        assert f"{path}:1: " in said
