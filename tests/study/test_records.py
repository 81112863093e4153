from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest
import records
from experiments import Setting
from sandbox import StepFailed


def items(general, task):
    """As the retention tool writes them, with figures of full length."""
    rng = random.Random(0)
    drift = ("kl", "reverse_kl", "base_nll", "nll", "top1")
    said = {"prompt": "What is it?", "answer": "A secret.", "ids": [1, 2], "length": 64, "ended": True, "tokens": 64}
    said.update(list=False, one_word=False)
    asked = {"answer": "Another secret.", "exact_match": 1.0, "contains": 0.0}
    return {
        "keys": {"answers": "0"},
        "general": [
            {**said, **{name: rng.random() for name in drift}, "kl_by_position": [rng.random() for _ in range(64)]}
            for _ in range(general)
        ],
        "task": [
            {**asked, "f1": rng.random(), "input_kl": rng.random(), "input_top1": rng.random()} for _ in range(task)
        ],
    }


def test_a_record_has_the_figure_of_every_item_and_no_text():
    given = items(3, 5)
    found = records.compact(given)
    assert found["general"]["kl"] == [round(item["kl"], 4) for item in given["general"]]
    assert found["general"]["ended"] == [1, 1, 1]
    assert found["task"]["exact_match"] == [1] * 5
    assert len(found["by_position"]["kl"]) == 64
    assert "secret" not in json.dumps(found)


def test_a_curve_is_the_mean_over_the_answers_that_are_long_enough():
    assert records.by_position([[1.0, 2.0], [3.0]]) == [2, 2]
    assert records.by_position([]) == []


def test_a_column_has_the_figures_of_those_items_that_were_measured():
    assert records.columns([{"a": 1, "b": 2}, {"a": 1}], ("a", "b", "c")) == {"a": [1, 1], "b": [2]}


def test_the_record_of_the_whole_study_stays_below_20_kilobytes(tmp_path, record):
    file = tmp_path / "runs" / "lora-0.json"
    records.write(file, {**record("lora", 0), **records.compact(items(40, 200)), "log": {"nll": [0.1234] * 64}})
    assert file.stat().st_size < 20_000


def test_what_was_written_is_read_again(tmp_path, record):
    given = [record("base", None), record("lora", 0)]
    for one in given:
        records.write(tmp_path / f"{one['arm']}.json", one)
    assert records.read(tmp_path) == given


@pytest.mark.parametrize("text", ["", "[]", '{"arm": "lora"}'])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "lora-0.json").write_text(text, encoding="utf-8")
    with pytest.raises(StepFailed, match=r"lora-0\.json is no record"):
        records.read(tmp_path)


def test_runs_of_another_setting_are_not_put_beside_these(tmp_path, record):
    records.check([record("lora", 0)], {"train": 96}, tmp_path)
    with pytest.raises(StepFailed, match="train 96, now 64"):
        records.check([record("lora", 0)], {"train": 64}, tmp_path)


def test_a_setting_that_earlier_records_do_not_name_was_then_its_default(tmp_path, record):
    old, new = record("lora", 0), record("lora", 1)
    records.check([old], {"max_length": 2048}, tmp_path)
    with pytest.raises(StepFailed, match="max_length 2048, now 512"):
        records.check([old], {"max_length": 512}, tmp_path)
    new["setting"] = {**new["setting"], "max_length": 512}
    with pytest.raises(StepFailed, match="max_length 512, now 2048"):
        records.check([new], old["setting"], tmp_path)


def test_the_published_records_are_those_of_the_default_setting():
    folder = Path(__file__).resolve().parents[2] / "docs" / "results" / "runs"
    records.check(records.read(folder), asdict(Setting()), folder)
