"""`install` and `revert` where nothing goes wrong: what they write, what they leave, what they say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def outcome_of_import(place) -> str:
    code = (
        "from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM as M\n"
        "from peft.tuners.lora.layer import LoraLayer as L\n"
        "print(getattr(M, 'release', 'stock'), hasattr(L, 'selfaug_reference'))"
    )
    return subprocess.run([place.python, "-B", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_install_patches_both_files_and_puts_the_runtime_beside_them(place):
    result = place.done("install")
    assert place.states() == ("patched", "patched", "installed")
    assert outcome_of_import(place) == "0.1.0 True"
    runtime = place.site / "selfaug"
    assert sorted(path.relative_to(runtime).as_posix() for path in runtime.rglob("*")) == [
        "__init__.py",
        "hooks.py",
        "kit",
        "kit/__init__.py",
        "kit/__main__.py",
        "kit/part.py",
        "step.py",
        "trial",
        "trial/__init__.py",
        "trial/__main__.py",
    ]
    assert "SelfAug 0.1.0 is installed for qwen2." in result.out


def test_revert_restores_every_byte_mode_and_time(place):
    place.model.chmod(0o640)
    before = place.snapshot()
    place.done("install")
    assert place.model.stat().st_mode & 0o777 == 0o640
    place.done("revert")
    assert place.snapshot() == before
    assert outcome_of_import(place) == "stock False"


def test_a_second_install_changes_nothing_and_says_so(place):
    place.done("install")
    before = place.snapshot()
    result = place.done("install", "--json")
    assert place.snapshot() == before
    assert (result.data["changed"], result.data["changes"]) == (False, [])
    assert "installed already" in place.done("install").out


def test_a_second_revert_changes_nothing_and_says_so(place):
    before = place.snapshot()
    assert "not installed: nothing to do" in place.done("revert").out
    assert place.snapshot() == before


@pytest.mark.parametrize("verb", ["install", "revert"])
def test_a_dry_run_touches_nothing(place, verb):
    if verb == "revert":
        place.done("install")
    before = place.snapshot()
    data = place.done(verb, "--dry-run", "--json").data
    assert place.snapshot() == before
    assert data["changed"] is False
    assert [change["action"] for change in data["changes"]] == {
        "install": ["add", "patch", "patch"],
        "revert": ["restore", "restore", "remove"],
    }[verb]


def test_diff_is_the_same_before_and_after_install(place):
    before = place.done("diff").out
    place.done("install")
    assert place.done("diff").out == before
    assert "+class Qwen2ForCausalLM(SelfAligned, Qwen2Config):" in before
    assert "+class LoraLayer(ReferenceSwitch, BaseTunerLayer):" in before


def test_status_has_the_promised_form(place):
    data = place.status()
    assert [target["name"] for target in data["targets"]] == ["transformers:qwen2", "peft:lora"]
    assert data["targets"][0]["path"] == str(place.model)
    assert data["targets"][0]["version"] == "2.0"
    assert data["targets"][0]["next"].endswith(f" -m selfaug_patcher install --python {place.python}")
    assert len(data["targets"][0]["sha256"]) == 64
    assert data["runtime"]["path"] == str(place.site / "selfaug")
    assert (data["runtime"]["state"], data["exit_code"]) == ("missing", 0)


def test_an_older_selfaug_is_upgraded_and_then_reverted_to_stock(place, newer_selfaug):
    before = place.snapshot()
    place.done("install")
    assert place.states(selfaug=newer_selfaug) == ("patched", "patched", "older")
    assert "patched by an older SelfAug" in place.run("status", selfaug=newer_selfaug).out
    place.done("install", selfaug=newer_selfaug)
    assert place.states(selfaug=newer_selfaug) == ("patched", "patched", "installed")
    assert outcome_of_import(place) == "0.2.0 True"
    runtime = place.site / "selfaug"
    assert not [name for name in ("step.py", "kit") if (runtime / name).exists()]
    assert (runtime / "tools" / "step.py").is_file()
    place.done("revert", selfaug=newer_selfaug)
    assert place.snapshot() == before


def test_a_newer_selfaug_reverts_an_older_one(place, newer_selfaug):
    before = place.snapshot()
    place.done("install")
    place.done("revert", selfaug=newer_selfaug)
    assert place.snapshot() == before


def test_a_lost_record_still_reverts_to_stock(place):
    before = place.snapshot()
    place.done("install")
    for path in sorted((place.site / ".selfaug").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (place.site / ".selfaug").rmdir()
    place.done("revert")
    after = place.snapshot()
    assert after.keys() == before.keys()
    for path, (mode, *_, content) in after.items():
        assert (mode, content) == (before[path][0], before[path][-1]), path


def test_a_damaged_original_is_not_restored_but_computed(place):
    stock = place.model.read_bytes()
    place.done("install")
    for path in (place.site / ".selfaug" / "originals").iterdir():
        path.unlink()
        path.write_bytes(b"not what it was")
    place.done("revert")
    assert place.model.read_bytes() == stock
    assert place.states() == ("stock", "stock", "missing")


def test_transformers_alone_is_patched_where_peft_is_absent(make_place):
    place = make_place(peft=None)
    before = place.snapshot()
    result = place.done("install")
    assert "peft is not installed: SelfAug stays idle" in result.out
    assert place.states() == ("patched", "missing", "installed")
    assert place.run("status").code == 0
    assert place.run("verify").code == 0
    place.done("revert")
    assert place.snapshot() == before


NOT_THERE = {
    ("transformers", "install"): (1, "error[not-installed]: transformers is not installed\n"),
    ("transformers", "install --dry-run"): (1, "error[not-installed]: transformers is not installed\n"),
    ("transformers", "diff"): (1, "error[not-installed]: transformers is not installed\n"),
    ("transformers", "status"): (1, ' -m pip install "transformers<=2.0" && '),
    ("transformers", "verify"): (1, "FAIL  hash of transformers:qwen2: transformers is not installed\n"),
    ("transformers", "revert"): (0, "SelfAug is not installed: nothing to do.\n"),
    ("transformers", "revert --dry-run"): (0, "SelfAug is not installed: nothing to do.\n"),
    ("peft", "status"): (0, ' -m pip install "peft<=2.0" && '),
    ("peft", "verify"): (1, "FAIL  hash of transformers:qwen2: stock, not patched: "),
    ("peft", "diff"): (0, "+class Qwen2ForCausalLM(SelfAligned, Qwen2Config):\n"),
    ("peft", "revert"): (0, "SelfAug is not installed: nothing to do.\n"),
    ("peft", "install --dry-run"): (0, "note: peft is not installed: SelfAug stays idle until it is"),
    ("peft", "install"): (0, "SelfAug 0.1.0 is installed for qwen2."),
    ("both", "install"): (1, "error[not-installed]: transformers is not installed\n"),
    ("both", "status"): (1, ' -m pip install "peft<=2.0" && '),
    ("both", "verify"): (1, "FAIL  hash of transformers:qwen2: transformers is not installed\n"),
    ("both", "diff"): (1, "error[not-installed]: transformers is not installed\n"),
    ("both", "revert"): (0, "SelfAug is not installed: nothing to do.\n"),
}


@pytest.mark.parametrize(("absent", "command"), NOT_THERE)
def test_every_verb_says_what_is_absent(make_place, absent, command):
    place = make_place(**{name: None for name in ("transformers", "peft") if absent in (name, "both")})
    before = place.snapshot()
    result = place.run(*command.split())
    code, words = NOT_THERE[absent, command]
    assert (result.code, words in result.out + result.err) == (code, True), result.out + result.err
    assert isinstance(place.run(*command.split(), "--json").data["exit_code"], int)
    assert command == "install" or place.snapshot() == before


def test_nothing_is_said_to_do_for_peft_before_transformers_is_there(make_place):
    place = make_place(transformers=None)
    assert [bool(target["next"]) for target in place.status()["targets"]] == [True, False]


def test_verify_passes_on_a_patched_environment_and_fails_on_a_stock_one(place):
    assert place.run("verify").code == 1
    place.done("install")
    data = place.done("verify", "--json").data
    assert data["ok"] is True
    assert {check["name"] for check in data["checks"]} >= {"hash of peft:lora", "stand-in", "as stock: forward"}


def test_verify_sees_one_changed_byte_of_the_runtime(place):
    place.done("install")
    hooks = place.site / "selfaug" / "hooks.py"
    hooks.write_bytes(hooks.read_bytes() + b"\n")
    result = place.run("verify", "--json")
    assert result.code == 1
    assert "changed: hooks.py" in json.dumps(result.data)


def test_the_original_projects_command_installs(place):
    script = Path(__file__).resolve().parents[2] / "Code" / "update_module.py"
    command = [sys.executable, str(script), "--json", "--python", place.python]
    result = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    # The stand-ins are not pinned in the real table: the refusal of `install` is what shows that it ran.
    assert (result.returncode, json.loads(result.stdout)["exit_code"]) == (3, 3), result.stderr
