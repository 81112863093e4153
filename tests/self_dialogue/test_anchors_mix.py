"""mix --anchors: rows of token ids, in which the task has labels at its answers and the dialogues have none."""

from __future__ import annotations

import json

import pytest
import tiny_chat

from selfaug.self_dialogue import cli, manifest
from selfaug.toolkit import training_rows


@pytest.fixture
def mix(chat_model, tmp_path, capsys):
    """``mix --anchors`` on two dialogues and these task rows: the exit code, the rows, and what it says."""

    def run(task, *options, tokenizer=True):
        for name, rows in (("task", task), ("dialogues", [{"messages": turns} for turns in DIALOGUES])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        out = tmp_path / "out.jsonl"
        words = [
            "--task",
            tmp_path / "task.jsonl",
            "--dialogues",
            tmp_path / "dialogues.jsonl",
            "--out",
            out,
            "--anchors",
        ]
        words += ["--tokenizer", chat_model] if tokenizer else []
        code = cli.main(["mix", *map(str, words), *options])
        said = "".join(capsys.readouterr())
        return code, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else [], said

    return run


DIALOGUES = list(tiny_chat.dialogues())[:2]
TASK = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}]
ROWS = {
    "messages": {"messages": TASK},
    "alpaca": {"instruction": "Where?", "input": "", "output": "Here."},
    "prompt-completion-chat": {"prompt": TASK[:1], "completion": TASK[1:]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Where?"}, {"from": "gpt", "value": "Here."}]},
}


@pytest.mark.parametrize("format", ROWS)
def test_the_task_has_labels_at_its_answer_and_a_dialogue_has_none(mix, chat_model, format):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    code, rows, said = mix([ROWS[format]] * 3)
    assert code == 0, said
    anchors = [row for row in rows if set(row["labels"]) == {-100}]
    task = [row for row in rows if row not in anchors]
    wanted = [tokenizer.apply_chat_template(turns, tokenize=False) for turns in DIALOGUES]
    assert sorted(tokenizer.decode(row["input_ids"]) for row in anchors) == sorted(wanted)
    assert task == [training_rows.tokenised({"messages": TASK}, "", tokenizer)] * 3
    assert tokenizer.decode([token for token in task[0]["labels"] if token != -100]).endswith(".<|im_end|>")
    assert all(set(row) == {"input_ids", "labels"} for row in rows)


def test_the_manifest_says_that_the_dialogues_are_anchors(mix, tmp_path):
    assert mix([ROWS["messages"]] * 3, "--ratio", "0.25")[0] == 0
    facts = manifest.read(tmp_path / "out.jsonl")
    assert facts["anchors"] is True
    assert facts["format"] == "input_ids and labels"
    assert (facts["task"]["examples"], facts["dialogues"]["examples"]) == (3, 1)


def test_the_rows_can_be_read_as_training_rows(mix, tmp_path):
    assert mix([ROWS["messages"]])[0] == 0
    assert len(list(training_rows.read(tmp_path / "out.jsonl"))) == 3


@pytest.mark.parametrize("options", [("--format", "messages"), ("--render",)])
def test_a_format_of_texts_is_refused_beside_anchors(mix, options):
    code, rows, said = mix([ROWS["messages"]], *options)
    assert (code, rows) == (1, [])
    assert "--anchors writes token ids" in said


def test_without_a_tokenizer_there_are_no_anchors(mix):
    code, rows, said = mix([ROWS["messages"]], tokenizer=False)
    assert (code, rows) == (1, [])
    assert "--tokenizer NAME_OR_PATH" in said


def test_a_row_that_would_lose_a_column_is_refused_by_file_and_line(mix, tmp_path):
    code, rows, said = mix([ROWS["messages"], {**ROWS["messages"], "tools": [{"name": "f"}]}])
    assert (code, rows) == (1, [])
    assert f"{tmp_path / 'task.jsonl'}:2" in said
    assert "tools" in said
