"""What `python -m selfaug.trial` tells a user; that every check holds on patched packages, tests/patcher has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ON_STOCK_PACKAGES = """
import runpy, sys
from selfaug_patcher import memory
memory.install({}, {"selfaug": "Code"})
sys.argv = ["selfaug.trial", "--json"]
runpy.run_module("selfaug.trial", run_name="__main__", alter_sys=True)
"""


def test_on_stock_packages_no_check_holds_that_needs_selfaug():
    command = [sys.executable, "-c", ON_STOCK_PACKAGES]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert answers[-1] == {"done": True}
    checks = {answer["name"]: answer["ok"] for answer in answers if "name" in answer}
    of_selfaug = ("exact:", "KL of", "SELFAUG_EVAL", "two steps")
    assert len([name for name in checks if name.startswith(of_selfaug)]) >= 15
    assert [name for name, ok in checks.items() if ok and name.startswith(of_selfaug)] == []
    assert all(ok for name, ok in checks.items() if name.startswith(("arguments", "cache", "outputs", "warnings")))


@pytest.mark.filterwarnings("ignore:SelfAug is on but", "ignore:.*is deprecated")
def test_a_cache_that_is_a_module_is_handed_on_and_not_called(monkeypatch):
    """As the caches of transformers 4.44 to 4.48 are."""
    from transformers.cache_utils import DynamicCache

    from selfaug.trial import exact, tiny

    class Callable(DynamicCache):
        def __call__(self):
            raise NotImplementedError('Module is missing the required "forward" function')

    monkeypatch.setattr(exact, "_empty_cache", lambda *model: Callable())
    base = tiny.base(tiny.model_class("transformers.models.qwen2.modeling_qwen2:Qwen2ForCausalLM"))
    assert exact._filled_cache(base, "")[0]


def test_the_trial_is_no_process_of_the_launcher_that_started_it_and_has_none_of_the_users_settings(monkeypatch):
    """Its Trainer would wait for the others, as under `torchrun -m selfaug_patcher run`, or shard."""
    import os

    from selfaug.trial import __main__ as trial

    told = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_PORT": "29511", "ACCELERATE_USE_FSDP": "true"}
    told["SELFAUG_ALHPA"] = "1"  # would be an error of every step
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["selfaug.trial"])
    seen = {}
    monkeypatch.setattr(trial, "answers", lambda *arguments: iter(seen.update(os.environ) or ()))
    assert trial.main() == 0
    assert seen
    assert not seen.keys() & told.keys()
