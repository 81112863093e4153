"""The runner trains a tiny model in a process of its own, as the study has it do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "Code" / "examples"


@pytest.fixture
def train(tiny_model, tmp_path):
    """Three steps; what the runner wrote, and the Trainer's log."""
    rows = [{"prompt": f"Who made it in {year}? ", "completion": "Ana"} for year in range(3)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def make(*options, patched=(), fails=False, **settings):
        command = [sys.executable, *patched, EXAMPLES / "study" / "runner.py", tmp_path / "spent.json", *options]
        command += [EXAMPLES / "train_lora.py", "--model", tiny_model, "--data", data, "--output", tmp_path / "adapter"]
        command += ["--epochs", "1", "--batch-size", "1", "--rank", "2", "--lr", "1e-2"]
        env = {name: value for name, value in os.environ.items() if not name.startswith("SELFAUG")}
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env={**env, **settings}, capture_output=True, text=True, check=False
        )
        if fails:
            assert done.returncode == 1
            return done.stderr
        assert done.returncode == 0, done.stderr[-2000:]
        log = json.loads((tmp_path / "adapter" / "trainer_state.json").read_text())["log_history"]
        return json.loads((tmp_path / "spent.json").read_text()), log

    return make


def test_alpha_moves_on_a_straight_line_from_the_first_step_to_the_last(train):
    patched = ("-m", "selfaug_patcher", "run")
    spent, log = train("--alpha-to", "0", patched=patched, SELFAUG_ALPHA="1", SELFAUG_STRICT="1")
    rows = [row for row in log if "loss" in row]
    assert [row.get("selfaug/alpha") for row in rows] == [1.0, 0.5, None]  # at 0 a step is a stock one
    assert spent["training"]["steps"] == 3


def test_half_of_the_steps_leave_their_adapter_and_their_cpu_time(train, tmp_path):
    spent, log = train("--halfway", str(tmp_path / "halfway"), SELFAUG="0")
    assert spent["halfway"]["steps"] == 1
    assert 0 < spent["halfway"]["cpu_seconds"] < spent["training"]["cpu_seconds"] < spent["process"]["cpu_seconds"]
    assert spent["process"]["peak_mb"] > 100
    half, whole = (tmp_path / name / "adapter_model.safetensors" for name in ("halfway", "adapter"))
    assert half.read_bytes() != whole.read_bytes()
    assert not any("selfaug/kl" in row for row in log)


def test_samples_that_the_script_left_out_end_it_before_its_first_step(train, tmp_path):
    assert train("--samples", "3", SELFAUG="0")[0]["training"]["steps"] == 3
    (tmp_path / "spent.json").unlink()
    told = train("--samples", "4", fails=True, SELFAUG="0")
    assert "expected 4 training samples, found 3" in told
    assert "--max-length" in told
    assert "Traceback" not in told
    assert not (tmp_path / "spent.json").exists()
