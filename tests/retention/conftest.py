"""Adapters of the tiny model, and the command line as a function."""

from __future__ import annotations

import json

import pytest


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def make_adapter(tiny_model, tmp_path_factory):
    """Write a LoRA adapter whose B has the given spread; its folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def make(spread, base=tiny_model, seed=1, **settings):
        torch.manual_seed(seed)
        config = LoraConfig(**{"target_modules": ["v_proj"], **settings})
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=spread)
                elif "modules_to_save" in name or (parameter.requires_grad and name.endswith("bias")):
                    parameter.add_(0.5)
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def adapters(make_adapter):
    """One that has drifted, one that has not moved, and one between them."""
    return {"far": make_adapter(1.0), "still": make_adapter(0.0), "near": make_adapter(0.2, r=4)}


@pytest.fixture
def files(tmp_path):
    """general.txt with four instructions and task.jsonl with three questions."""
    (tmp_path / "general.txt").write_text("".join(f"Say {n}.\n" for n in range(4)), encoding="utf-8")
    rows = [{"prompt": f"Question {n}?", "answer": "yes", "answerable": n != 1} for n in range(3)]
    jsonl(tmp_path / "task.jsonl", rows)
    return tmp_path


@pytest.fixture
def measured(tiny_model, files, capsys):
    """Run the command on the tiny model; its output. ``status``: the exit code that is expected."""
    from selfaug.retention.__main__ import main

    def run(*options, status=0, limit=9):
        command = ["--base", str(tiny_model), "--out", str(files / "out"), "--general", str(files / "general.txt")]
        command += ["--task", str(files / "task.jsonl"), "--answer-limit", str(limit), "--task-answer-limit", "5"]
        capsys.readouterr()
        assert main([*command, "--device", "cpu", *map(str, options)]) == status
        output = capsys.readouterr()
        return output.err if status else output.out

    return run


@pytest.fixture
def result(files):
    return lambda: json.loads((files / "out" / "retention.json").read_text(encoding="utf-8"))


@pytest.fixture
def items(files):
    return lambda name: json.loads((files / "out" / "items" / f"{name}.json").read_text(encoding="utf-8"))
