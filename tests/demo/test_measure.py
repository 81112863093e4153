from __future__ import annotations

import json
import sys
from pathlib import Path

import measure
import pytest
import train_lora
from measure import pick, read_instructions

INSTRUCTIONS = Path(measure.__file__).with_name("instructions.txt")


def test_instructions_are_many_and_each_is_there_once():
    instructions = read_instructions(INSTRUCTIONS)
    assert len(instructions) >= 90
    assert len(set(instructions)) == len(instructions)
    assert all(line == line.strip() for line in instructions)


def test_instructions_are_picked_evenly_over_the_groups():
    assert pick("abcdef", 3) == ["a", "c", "e"]
    assert pick("abc", 9) == ["a", "b", "c"]


@pytest.fixture
def files(tmp_path):
    rows = [{"prompt": f"Question {n}: ", "completion": "yes"} for n in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    task = [{"prompt": f"Question {n}?", "answer": "yes", "answerable": True} for n in range(3)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in task), encoding="utf-8")
    return tmp_path


def test_base_and_two_adapters_are_measured_on_one_set_of_weights(tiny_model, files, monkeypatch, capsys):
    for name, rate in (("lora", "0.05"), ("selfaug", "0")):
        paths = ["--model", str(tiny_model), "--data", str(files / "train.jsonl"), "--output", str(files / name)]
        train_lora.main([*paths, "--lr", rate, "--epochs", "1", "--batch-size", "2", "--warmup-steps", "0"])
    capsys.readouterr()
    command = ["measure.py", "--model", str(tiny_model), "--instructions", str(INSTRUCTIONS), "--count", "4"]
    command += [f"--adapter={name}={files / name}" for name in ("lora", "selfaug")]
    command += ["--answer-limit", "9", "--task", str(files / "test.jsonl"), "--output", str(files / "measures.json")]
    monkeypatch.setattr(sys, "argv", command)
    measure.main()

    figures = json.loads((files / "measures.json").read_text(encoding="utf-8"))
    assert list(figures["models"]) == ["base", "lora", "selfaug"]
    for model in figures["models"].values():
        assert len(model["task"]) == 3
        assert all(1 <= length <= 9 for length in model["lengths"])
    tuned, untouched = (figures["models"][name] for name in ("lora", "selfaug"))
    assert all(row["kl"] > 0 for row in tuned["drift"])
    assert all(row["kl"] == 0 for row in untouched["drift"])
    assert [row["tokens"] for row in tuned["drift"]] == figures["models"]["base"]["lengths"]
    assert untouched["instructions"] == figures["models"]["base"]["instructions"]
    counters = [line for line in capsys.readouterr().out.splitlines() if line.endswith("/4")]
    assert counters[-1] == "selfaug, drift: 4/4"
