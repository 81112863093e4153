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
    whole = [PROBLEM, {**PROBLEM, "task_id": "HumanEval/7"}]
    assert humaneval.problems(put(tmp_path / name, *whole)) == whole


def test_a_file_that_was_unpacked_or_has_a_byte_order_mark_is_read_by_its_content(tmp_path):
    row = json.dumps(PROBLEM).encode()
    for name, content in (("unpacked.gz", row), ("zipped.jsonl", gzip.compress(row)), ("mark", b"\xef\xbb\xbf" + row)):
        (tmp_path / name).write_bytes(content)
        assert humaneval.problems(tmp_path / name) == [PROBLEM]


GOOD = json.dumps(PROBLEM)
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{GOOD}\n{json.dumps({**PROBLEM, 'test': None})}", "bad:2: no problem of HumanEval: expected an object with"),
        (f"\n\n\n{GOOD[:-9]}", "bad:4: no problem"),
        (f"\n \n\n[]\n{GOOD}", "bad:4: no problem"),
        (f"{GOOD}\n{DEEP}", "bad:2: .*deeper than"),
        (f"{GOOD}\n\xff".encode("latin-1"), "bad:2: .*utf-8"),
        (GOOD.replace("first", "\\ud800", 1), "bad:1: .*prompt holds"),
        (GOOD.replace("/0", "/first"), "bad:1: .*expected a task_id such as HumanEval/12, found 'HumanEval/first'"),
        (GOOD.replace("/0", "/٣"), "bad:1: .*expected a task_id"),
        (f"{GOOD}\n{GOOD}", "bad:2: .*HumanEval/0 is there already"),
        ("\n", "bad has no problems"),
        (gzip.compress(GOOD.encode(), mtime=0)[:-12], "bad cannot be read"),
        (gzip.compress(GOOD.encode(), mtime=0)[:12] + b"\xff" * 40, "bad cannot be read"),
    ],
)
def test_another_file_is_refused_with_the_line(tmp_path, content, said):
    (tmp_path / "bad").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Refusal, match=said):
        humaneval.problems(tmp_path / "bad")


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "none.jsonl.gz", tmp_path):
        with pytest.raises(Refusal, match="cannot be read"):
            humaneval.problems(path)


@pytest.mark.parametrize("size", ["0", "-1"])
def test_a_batch_of_no_answers_is_refused(monkeypatch, capsys, size):
    monkeypatch.setattr("sys.argv", ["humaneval.py", "none.gz", "--base", "b", "--out", "o", f"--batch-size={size}"])
    with pytest.raises(SystemExit):
        humaneval.main()
    assert f"a whole number > 0, not '{size}'" in capsys.readouterr().err


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
