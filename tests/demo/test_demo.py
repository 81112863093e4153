"""The whole demo on a tiny model, in an environment whose transformers and peft are copies of the installed ones."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import pytest
import sandbox
from sandbox import Sandbox

from selfaug.toolkit.files import sha256

DEMO = runpy.run_path(str(Path(sandbox.__file__).with_name("__main__.py")), run_name="demo")
TARGETS = ("transformers/models/qwen2/modeling_qwen2.py", "peft/tuners/lora/layer.py")


def create(self, requirements, extra, without_dependencies):
    """Instead of pip: copies of the two packages to patch; everything else is seen through a .pth file."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.root / "venv")], check=True)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ran = subprocess.run([str(self.python), "-c", code], check=True, capture_output=True, text=True)
    site = Path(ran.stdout.strip())
    installed = Path(sysconfig.get_path("purelib"))
    (site / "installed.pth").write_text(f"{installed}\n", encoding="utf-8")
    for name in ("transformers", "peft"):
        shutil.copytree(installed / name, site / name)
        metadata = Path(str(distribution(name).locate_file(""))) / f"{name}-{distribution(name).version}.dist-info"
        shutil.copytree(metadata, site / metadata.name)


def site(output):
    return next(path for path in (output / "venv").rglob("site-packages") if path.is_dir())


@pytest.mark.environments
def test_the_demo_trains_twice_reverts_and_goes_on_where_it_stopped(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Sandbox, "create", create)
    size = replace(DEMO["QUICK"], train=4, test=4, instructions=3, answer_limit=4)
    DEMO["Demo"](tmp_path, str(tiny_model), size, seed=0).run()

    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["settings"]["alpha"] == size.alpha
    assert results["models"]["selfaug"]["steps"] == results["models"]["lora"]["steps"] == 2
    logs = {name: (tmp_path / "logs" / f"train-{name}.log").read_text(encoding="utf-8") for name in ("lora", "selfaug")}
    assert "selfaug/kl" in logs["selfaug"]
    assert "selfaug" not in logs["lora"].replace(str(tmp_path), "").lower()
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    for target in TARGETS:
        assert sha256(site(tmp_path) / target) == sha256(Path(sysconfig.get_path("purelib")) / target)
    assert not (site(tmp_path) / "selfaug").exists()
    first = capsys.readouterr().out
    assert "reverted: every file of transformers and peft has its stock sha256 again" in first
    assert "done before" not in first

    DEMO["Demo"](tmp_path, str(tiny_model), size, seed=0).run()
    second = capsys.readouterr().out
    assert second.count("done before") == 6
    assert second.split("learned:")[1].split("Whole time")[0] == first.split("learned:")[1].split("Whole time")[0]


PROBLEM = {
    "prompt": 'def one() -> int:\n    """Return 1."""\n',
    "entry_point": "one",
    "test": "def check(one): assert one() == 1",
}


@pytest.mark.environments
def test_a_model_of_another_family_is_patched_reverted_and_may_be_asked_for_code(
    tiny_other_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(Sandbox, "create", create)
    code = tmp_path / "HumanEval.jsonl.gz"
    rows = [{"task_id": f"HumanEval/{number}", **PROBLEM} for number in range(2)]
    code.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    size = replace(DEMO["QUICK"], train=4, test=4, instructions=3, answer_limit=4)
    DEMO["Demo"](tmp_path / "out", str(tiny_other_model), size, seed=0, code=code).run()

    assert "selfaug/kl" in (tmp_path / "out" / "logs" / "train-selfaug.log").read_text(encoding="utf-8")
    assert "transformers:qwen2" not in (tmp_path / "out" / "logs" / "patcher-install.log").read_text(encoding="utf-8")
    family = json.loads((tiny_other_model / "config.json").read_text(encoding="utf-8"))["model_type"]
    file = f"transformers/models/{family}/modeling_{family}.py"
    assert sha256(site(tmp_path / "out") / file) == sha256(Path(sysconfig.get_path("purelib")) / file)
    shown = capsys.readouterr().out
    assert "[9/9]" in shown
    assert "kept: 2 problems of HumanEval" in shown
    assert re.search(r"pass@1 +0.00 +0.00 +0.00 ", shown)


@pytest.mark.environments
def test_with_sa_sft_two_adapters_more_are_trained_on_dialogues_of_the_models_own(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Sandbox, "create", create)
    monkeypatch.setattr(Sandbox, "run", with_dialogues(Sandbox.run))
    size = replace(DEMO["QUICK"], train=6, test=4, instructions=3, answer_limit=4)
    DEMO["Demo"](tmp_path, str(tiny_model), size, seed=0, sa_sft=True).run()

    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    steps = {name: figures["steps"] for name, figures in results["models"].items() if name != "base"}
    assert steps == {"lora": 3, "selfaug": 3, "sa-sft": 4, "sa-sft-selfaug": 4}
    logs = {name: (tmp_path / "logs" / f"train-{name}.log").read_text(encoding="utf-8") for name in steps}
    assert {name for name, log in logs.items() if "selfaug/kl" in log} == {"selfaug", "sa-sft-selfaug"}
    assert set(results["dialogue_differences"]) == {"sa-sft", "sa-sft-selfaug"}


def with_dialogues(run):
    """The tiny model writes nothing that passes the filters: two rows stand for its dialogues; the mixing is real."""

    def instead(self, name, command, *args, **kwargs):
        if name != "dialogues":
            return run(self, name, command, *args, **kwargs)
        turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ana."}]
        out = Path(command[command.index("--out") + 1])
        out.write_text(f"{json.dumps({'messages': turns})}\n" * 2, encoding="utf-8")
        return ""

    return instead


@pytest.mark.environments
def test_a_demo_that_was_stopped_while_patched_is_reverted_before_it_trains_on_stock(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(Sandbox, "create", create)
    demo = DEMO["Demo"](tmp_path, str(tiny_model), DEMO["QUICK"], seed=0)
    demo.make_environment()
    demo.patcher("install")
    assert demo.states() == {"patched"}
    again = DEMO["Demo"](tmp_path, str(tiny_model), DEMO["QUICK"], seed=0)
    again.make_environment()
    assert again.states() == {"stock"}


def test_the_python_that_starts_the_demo_needs_no_packages():
    command = [sys.executable, "-S", str(Path(sandbox.__file__).parent), "--help"]
    assert "--quick" in subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("content", [None, "no problem"])
def test_a_file_that_is_not_humanevals_is_refused_before_anything_is_made(tmp_path, content):
    file = tmp_path / "HumanEval.jsonl.gz"
    if content:
        file.write_text(content, encoding="utf-8")
    command = [sys.executable, "-S", str(Path(sandbox.__file__).parent), "--code", str(file)]
    ran = subprocess.run([*command, "--output", str(tmp_path / "out")], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 1
    assert str(file) in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--lr=nan", "--lr=0", "--alpha=-1", "--alpha=inf"])
def test_a_rate_or_weight_that_is_no_such_number_is_refused_before_anything_is_made(tmp_path, option):
    command = [sys.executable, "-S", str(Path(sandbox.__file__).parent), option, "--output", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (ran.returncode, option.partition("=")[2] in ran.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
