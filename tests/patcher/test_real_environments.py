"""The real thing: released packages from their wheels, patched, verified and reverted, in environments of their own.

torch and everything else comes from the environment that runs the tests; transformers, peft and what must fit the
release lie in front of it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv

import older
import pytest
from snapshots import snapshot
from stand_ins import Place

from selfaug_patcher import cli, families, payload, pins
from selfaug_patcher.maintain import wheels

pytestmark = pytest.mark.environments

PAIRS = {
    "newest": ("5.24.0", "0.21.2", ()),
    "old": ("4.40.2", "0.10.0", ("tokenizers<0.20,>=0.19", "huggingface-hub<1.0", "numpy<3", "hf-xet")),
}


@pytest.fixture(params=PAIRS)
def real(request, tmp_path):
    transformers, peft, more = PAIRS[request.param]
    pytest.importorskip("torch")
    place = Place(tmp_path / "env", None)
    place.releases = (transformers, peft)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(place.root)
    found = [wheels.find("transformers", transformers), wheels.find("peft", peft)]
    if None in found:
        pytest.skip(f"no wheels of transformers {transformers} and peft {peft} in {wheels.cache()}")
    pip = [sys.executable, "-m", "pip", "--python", place.python, "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-compile", *map(str, found)], check=True)
    if more:
        result = subprocess.run([*pip, "--no-compile", *more], capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"cannot install {', '.join(more)}: {result.stderr[-200:]}")
    (place.site / "zz-shared.pth").write_text(sysconfig.get_path("purelib"))
    return place


def run(place, capsys, *arguments: str) -> str:
    code = cli.main([*arguments, "--python", place.python])
    output = capsys.readouterr()
    assert code == 0, output.out + output.err
    return output.out


def test_install_verify_and_revert(real, capsys, record_property):
    before = snapshot(real.site)
    run(real, capsys, "install")
    report = run(real, capsys, "verify")
    versions = " ".join(f"{name} {version}" for name, version in zip(("transformers", "peft"), real.releases))
    record_property("told", f"verify: {versions}: {report.count('ok    ')} checks")
    assert "ok    exact: plain: KL 5.87" in report
    assert report.count("as stock: ") >= 8
    run(real, capsys, "revert")
    after = snapshot(real.site)
    assert {path: after.get(path) for path in before} == before
    assert {path for path in after if "__pycache__" not in path} == set(before)


def test_a_peft_with_the_old_switch_is_upgraded_by_install_and_reverted_exactly(real, capsys):
    before = snapshot(real.site)
    table, runtime = pins.load(), payload.load()
    contents = {
        "transformers:qwen2": table.patched(families.MODELS[0], real.model.read_bytes()),
        "peft:lora": older.with_switch(real.layer.read_bytes()),
    }
    versions = dict(zip(("transformers", "peft"), real.releases))
    older.install(real.site, versions, contents, runtime.files)
    assert "patched by an older SelfAug" in status(real, capsys)
    run(real, capsys, "install")
    assert older.SWITCH not in real.layer.read_text()
    assert "\nclass LoraLayer(ReferenceSwitch, BaseTunerLayer):\n" in real.layer.read_text()
    assert "older" not in status(real, capsys)
    run(real, capsys, "revert")
    after = snapshot(real.site)
    assert {path: after.get(path) for path in before} == before
    assert {path for path in after if "__pycache__" not in path} == set(before)


def status(place, capsys) -> str:
    cli.main(["status", "--python", place.python])
    return capsys.readouterr().out


def test_a_script_is_patched_from_memory(real):
    code = "from transformers import Qwen2ForCausalLM as M; print([base.__name__ for base in M.__mro__][1])"
    script = real.root / "script.py"
    script.write_text(code)
    command = [sys.executable, "-m", "selfaug_patcher", "run", "--python", real.python, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "SelfAligned\n", result.stderr
    assert not (real.site / "selfaug").exists()
