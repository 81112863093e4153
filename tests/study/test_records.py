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


@pytest.mark.parametrize("text", ["", "[]", '{"arm": "lora"}', "[" * 100_000])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "lora-0.json").write_text(text, encoding="utf-8")
    with pytest.raises(StepFailed, match=r"lora-0\.json is no record"):
        records.read(tmp_path)


def put(folder, name, record):
    (folder / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("arm",), "no-such-arm", "arm: expected one of this study's, found no-such-arm"),
        (("arm",), [], "arm: expected"),
        (("arm",), "base", "seed: expected null, found 0"),
        (("seed",), "0", "seed: expected a whole number, found 0"),
        (("seed",), None, "seed: expected a whole number, found None"),
        (("setting",), [], "setting: expected an object"),
        (("general",), None, "general: expected an object, found None"),
        (("by_position",), [], "by_position: expected an object"),
        (("versions", "torch"), 2, "versions.torch: expected a text, found 2"),
        (("training", "steps"), None, "training.steps: expected a finite number, found None"),
        (("log", "nll"), [0.5, "x"], r"log.nll\[1\]: expected a finite number, found x"),
        (("task", "exact_match"), {}, "task.exact_match: expected a list of numbers"),
        (("task", "f1"), [1, 0, True, 0, 1], r"task.f1\[2\]: expected a finite number, found True"),
        (("task", "f1"), [1, 0, float("nan"), 0, 1], r"task.f1\[2\]: expected a finite number, found nan"),
        (("task", "f1"), [1, 0, 10**400, 0, 1], r"task.f1\[2\]: expected a finite number, found 1000"),
        (("task", "f1"), [1, 0], "task.f1: expected as many numbers as task.exact_match has, found 2"),
        (("task", "input_top1"), [1], "task.input_top1: expected as many numbers as task.input_kl has, found 1"),
        (("task", "input_kl"), [], "task.input_kl: expected as many numbers"),
        (("general", "top1"), [1], "general.top1: expected as many numbers as general.kl has, found 1"),
        (("code",), {"length": [1]}, "code.passed: expected a list of numbers, found None"),
    ],
)
def test_a_record_of_another_form_is_named_with_the_place(tmp_path, record, place, value, said):
    whole = record("lora", 0)
    inner = whole
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    put(tmp_path, "odd", whole)
    with pytest.raises(StepFailed, match=rf"odd\.json is no record of a run \({said}"):
        records.read(tmp_path)


def test_a_folder_with_the_name_of_a_record_is_named(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(StepFailed, match=r"x\.json is no record of a run"):
        records.read(tmp_path)


def test_two_records_of_one_run_are_named(tmp_path, record):
    for name in ("lora-0", "lora-0 (copy)"):
        put(tmp_path, name, record("lora", 0))
    with pytest.raises(StepFailed, match=r"lora-0 \(copy\)\.json and .*lora-0\.json are records of the same run"):
        records.read(tmp_path)


@pytest.mark.parametrize(("column", "said"), [("f1", "4 numbers, not 5"), ("answerable", "other values")])
def test_records_that_are_not_about_the_same_items_are_named(tmp_path, record, column, said):
    one, other = record("lora", 0), record("lora", 1)
    for name in ("exact_match", "contains", "f1", "answerable"):
        other["task"][name] = other["task"][name][:4] if column == "f1" else [1, 0, 1, 0, 1]
    put(tmp_path, "lora-0", one)
    put(tmp_path, "lora-1", other)
    with pytest.raises(StepFailed, match=rf"lora-1\.json does not go with .*lora-0\.json \(task\..*{said}"):
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
