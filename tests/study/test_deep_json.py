"""Python's decoder of JSON raises RecursionError for a text that is nested deeper than Python's stack. It is no
ValueError, which every reader expects, and no reader lets it through.
"""

from __future__ import annotations

import ast
from pathlib import Path

import humaneval
import humaneval_file
import paths
import pytest
import records
from journal import Journal
from sandbox import StepFailed

from Code.toolkit.errors import Refusal
from selfaug import receipt
from selfaug.reference import cache
from selfaug.retention import obedience, tool_calls
from selfaug.retention.items import Items
from selfaug.self_dialogue import dialogue_log
from selfaug.toolkit import errors, files, rows

DEEP = "[" * 100_000
CODE = Path(__file__).resolve().parents[2] / "Code"


@pytest.fixture
def deep(tmp_path):
    file = tmp_path / "model.json"  # the name that cache.describe reads
    file.write_text(DEEP + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("read", "refusal"),
    [
        pytest.param(files.read_json, errors.Refusal, id="read_json"),
        pytest.param(lambda file: list(rows.rows(file)), errors.Refusal, id="rows"),
        pytest.param(lambda file: list(rows.rows(file, jsonl_by_default=True)), errors.Refusal, id="training rows"),
        pytest.param(lambda file: dialogue_log.DialogueLog(file, {}), errors.Refusal, id="dialogue log"),
        pytest.param(lambda file: cache.describe(file.parent), cache.CacheError, id="model.json of a cache"),
        pytest.param(humaneval_file.problems, Refusal, id="problems"),
        pytest.param(humaneval_file.answers, Refusal, id="answers to the problems"),
        pytest.param(paths.read, StepFailed, id="figures of a child of the study"),
        pytest.param(lambda file: records.read(file.parent), StepFailed, id="records"),
    ],
)
def test_a_file_of_json_too_deep_for_python_is_refused_by_name(deep, read, refusal):
    with pytest.raises(refusal, match=r"model\.json"):
        read(deep)


@pytest.mark.parametrize(
    ("read", "nothing"),
    [
        pytest.param(lambda file: Items(file).keys, {}, id="items"),
        pytest.param(lambda file: Journal(file).entries, {}, id="journal"),
        pytest.param(lambda file: humaneval.Record(file, "key").rows, {}, id="record of answers"),
        pytest.param(lambda file: tool_calls.read(DEEP), [], id="tool call"),
        pytest.param(lambda file: tool_calls.read(f"<tool_call>{DEEP}"), [], id="marked tool call"),
        pytest.param(lambda file: obedience.CHECKS["json"](DEEP, "a"), False, id="answer in JSON"),
        pytest.param(lambda file: receipt._object(DEEP, "targets"), {}, id="receipt"),
    ],
)
def test_json_too_deep_for_python_counts_as_no_json_where_that_is_no_error(deep, read, nothing):
    assert read(deep) == nothing


def test_a_number_that_no_integer_holds_is_no_width_of_a_model(deep):
    deep.write_text('{"model": "m", "hidden_size": 1e999, "fingerprint": "f"}', encoding="utf-8")
    with pytest.raises(cache.CacheError, match=r"model\.json"):
        cache.describe(deep.parent)


@pytest.mark.parametrize("content", ["[]", '{"train": 1}', "1"])
def test_a_journal_of_another_form_has_no_finished_steps(deep, content):
    deep.write_text(content, encoding="utf-8")
    assert Journal(deep).entries == {}


@pytest.mark.parametrize("package", ["retention", "self_dialogue"])
def test_the_tools_decode_json_by_the_toolkit_alone(package):
    for file in (CODE / package).glob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
        assert not names & {"loads", "JSONDecoder"}, file.name
