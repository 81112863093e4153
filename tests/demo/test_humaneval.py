from __future__ import annotations

import gzip
import json

import humaneval
import pytest

from Code.retention.base_model import BaseModel
from Code.toolkit.errors import Refusal

PROBLEM = {
    "task_id": "HumanEval/0",
    "prompt": (
        "from typing import List\n\ndef helper(x):\n    return x\n\n"
        'def first(xs: List[int]) -> int:\n    """The first."""\n'
    ),
    "entry_point": "first",
    "test": "def check(candidate):\n    assert candidate([3, 4]) == 3\n",
}


def put(file, *rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)
    return file


@pytest.mark.parametrize("name", ["HumanEval.jsonl.gz", "HumanEval.jsonl"])
def test_the_official_file_is_read_compressed_or_not(tmp_path, name):
    assert humaneval.problems(put(tmp_path / name, PROBLEM, PROBLEM)) == [PROBLEM] * 2


def test_another_file_is_refused_with_the_line(tmp_path):
    with pytest.raises(Refusal, match=r"bad\.jsonl:2: no problem of HumanEval"):
        humaneval.problems(put(tmp_path / "bad.jsonl", PROBLEM, {**PROBLEM, "test": None}))
    with pytest.raises(Refusal, match="has no problems"):
        humaneval.problems(put(tmp_path / "empty.jsonl"))
    with pytest.raises(Refusal, match="cannot be read"):
        humaneval.problems(tmp_path / "none.jsonl.gz")


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Sure:\n```python\nx = 1\n```\nand\n```\ny\n```", "x = 1\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\ny =", "x = 1\ny ="),
        ("x = 1", "x = 1"),
        ("False", "False"),
    ],
)
def test_the_first_code_block_is_what_runs(answer, code):
    assert humaneval.code_of(answer) == code


@pytest.mark.parametrize(
    ("answer", "passed"),
    [
        ("```python\ndef first(xs: List[int]) -> int:\n    return helper(xs[0])\n```", True),
        ("```python\ndef first(xs):\n    return xs[1]\n```", False),
        ("False", False),
        ("```python\ndef other(xs):\n    return xs[0]\n```", False),
    ],
)
def test_an_answer_passes_if_the_problems_tests_do(answer, passed):
    """The imports and the other functions of the problem are there; its own function is not done by being declared."""
    assert (humaneval.code_process.run(humaneval.program(PROBLEM, answer)) == "") is passed


@pytest.fixture
def measured(tiny_model, tmp_path, capsys):
    file = put(tmp_path / "HumanEval.jsonl", *({**PROBLEM, "task_id": f"HumanEval/{n}"} for n in range(3)))

    def measure(**other):
        base = BaseModel(str(tiny_model), "float32", "cpu")
        rows = humaneval.measure(base, None, file, tmp_path / "out" / "code.jsonl", 2)
        return rows, capsys.readouterr().out.count("HumanEval: ")

    return measure, tmp_path / "out" / "code.jsonl"


def test_a_second_run_does_only_what_is_missing(measured, monkeypatch):
    measure, out = measured
    monkeypatch.setattr(humaneval, "LIMIT", 4)
    rows, done = measure()
    assert [row["task_id"] for row in rows] == [f"HumanEval/{n}" for n in range(3)]
    assert (done, {row["length"] for row in rows}, {row["passed"] for row in rows}) == (3, {4}, {False})
    assert measure() == (rows, 0)
    lines = out.read_text(encoding="utf-8").splitlines()
    out.write_text("\n".join([*lines[:2], lines[3][:20]]), encoding="utf-8")  # stopped in the middle of a line
    assert measure() == (rows, 2)
    out.write_text("\n".join(lines[:2]) + "\n", encoding="utf-8")
    assert measure() == (rows, 2)
    monkeypatch.setattr(humaneval, "LIMIT", 3)
    assert measure()[1] == 3, "figures of another limit are not kept"
