"""The study on a tiny model, with real trainings and measurements."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARMS = ["lora", "interpolation", "early-stopping", "sasft-selfaug-0.5", "full-selfaug"]
SIZE = (
    "--train 6 --test 5 --dialogues 2 --dialogue-tokens 40 --general 3 --answer-limit 6 --task-answer-limit 4".split()
)


@pytest.fixture(scope="module")
def talking_model(tmp_path_factory):
    """A Qwen2 that answers in whole sentences, so that dialogues pass the filters."""
    sys.path[:0] = [str(ROOT / "tests" / "self_dialogue")]
    import smollm
    import tiny_chat

    folder = tmp_path_factory.mktemp("talking-qwen2")
    smollm.as_qwen2(tiny_chat.model(steps=60)).save_pretrained(folder)
    tiny_chat.tokenizer().save_pretrained(folder)
    return folder


def study(folder, model, *arguments):
    command = [sys.executable, str(ROOT / "Code" / "examples" / "study"), "--here", "--model", str(model), *SIZE]
    command += ["--output", str(folder / "out"), "--results", str(folder / "results"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.environments
def test_the_study_trains_measures_reports_and_does_nothing_twice(talking_model, tmp_path):
    ran = study(tmp_path, talking_model, "--arms", *ARMS, "--seeds", "0", "--jobs", "2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    runs = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (tmp_path / "results/runs").iterdir()}
    assert sorted(runs) == sorted([*(f"{arm}-0" for arm in ARMS), "base"])
    drift = {name: sum(run["general"]["kl"]) for name, run in runs.items()}
    assert drift["base"] == 0 < drift["interpolation-0"] < drift["lora-0"]
    assert drift["early-stopping-0"] == 0, "its one step is the first of the warm-up, with a learning rate of 0"
    assert [runs[f"{arm}-0"]["training"]["steps"] for arm in ARMS] == [3, 3, 1, 4, 3]
    assert all(runs[f"{arm}-0"]["training"]["cpu_seconds"] > 0 for arm in ARMS)
    assert "kl" in runs["sasft-selfaug-0.5-0"]["log"]
    assert runs["full-selfaug-0"]["log"]["kl"][0] == 0, "the weights at the start are the reference"
    assert runs["full-selfaug-0"]["log"]["kl"][-1] > 0 < drift["full-selfaug-0"]
    assert "kl" not in runs["lora-0"]["log"]
    assert "| SA-SFT + SelfAug 0.5 | 1 |" in (tmp_path / "results.md").read_text(encoding="utf-8")

    again = study(tmp_path, talking_model, "--arms", *ARMS, "--seeds", "0")
    assert "5 runs, 5 of them done before" in again.stdout
    assert "train" not in again.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--arms", "selfaug-0.7"], "selfaug-0.7"),
        (["--task-train", "x.jsonl"], "--task-train and --task-test go together"),
        (["--jobs", "0"], "a whole number > 0, not '0'"),
        (["--lr", "nan"], "a number > 0, not 'nan'"),
    ],
)
def test_a_wrong_command_line_is_refused(tmp_path, arguments, said):
    ran = study(tmp_path, "no-model", *arguments)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert not (tmp_path / "out").exists()


def test_an_arm_with_a_longer_context_is_refused_with_a_set_of_the_users_own(tmp_path):
    file = str(tmp_path / "own.jsonl")
    ran = study(tmp_path, "no-model", "--task-train", file, "--task-test", file, "--arms", "lora", "context-1k")
    assert ran.returncode == 1
    assert "context-1k adds passages to the made-up questions" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_set_of_the_users_own_that_cannot_be_read_is_an_error_and_no_traceback(tmp_path):
    file = str(tmp_path / "none.jsonl")
    ran = study(tmp_path, "no-model", "--task-train", file, "--task-test", file)
    assert ran.returncode == 1
    assert f"{file} cannot be read" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("content", [None, "no problem"])
def test_a_file_that_is_not_humanevals_is_refused_before_anything_is_made(tmp_path, content):
    file = tmp_path / "HumanEval.jsonl.gz"
    if content:
        file.write_text(content, encoding="utf-8")
    ran = study(tmp_path, "no-model", "--arms", "lora", "--code", str(file))
    assert ran.returncode == 1
    assert str(file) in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_study_whose_runs_all_fail_says_why(tmp_path):
    ran = study(tmp_path, tmp_path / "no-model", "--arms", "lora", "--seeds", "0")
    assert ran.returncode == 1
    assert "failed: train lora-0: " in ran.stderr
    assert str(tmp_path / "no-model") in ran.stderr
    assert "failed: measure lora-0: left out" in ran.stderr
    assert "has no records" not in ran.stderr
