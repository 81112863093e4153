"""The real thing: released packages from their wheels, patched, verified and reverted, in environments of their own.

torch and everything else comes from the environment that runs the tests; transformers, peft and what must fit the
release lie in front of it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

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


newest = pytest.mark.parametrize("real", ["newest"], indirect=True)


def without(folder: Path, *rows: str) -> Path:
    """The patches folder without the rows that begin with these words."""
    shutil.copytree(pins.load().root, folder)
    lines = (folder / "pins.txt").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not any(line.split("  ")[0] in row and row.split()[1] in line for row in rows)]
    assert len(lines) - len(kept) == len(rows)
    (folder / "pins.txt").write_text("".join(kept))
    return folder


@newest
def test_the_newest_releases_without_their_pins_are_proved_here(real, tmp_path, capsys):
    patches = without(tmp_path / "patches", "transformers:qwen2 5.24.0", "peft:lora 0.21.1-2")
    before = snapshot(real.site)
    assert cli.main(["install", "--python", real.python], patches) == 0
    assert "note: qwen2: not pinned, proved here, " in capsys.readouterr().out
    assert cli.main(["status", "--python", real.python], patches) == 0
    output = capsys.readouterr().out
    assert "transformers:qwen2  patched      transformers 5.24.0, proved here\n" in output
    assert "peft:lora           patched      peft 0.21.2, proved here\n" in output
    assert cli.main(["revert", "--python", real.python], patches) == 0
    after = snapshot(real.site)
    assert {path: after.get(path) for path in before} == before


@newest
def test_llama_gets_the_same_seam_and_stock_back(real, capsys):
    llama = next(target for target in families.MODELS if target.family == "llama")
    path = real.site / llama.path
    patched = pins.load().patched(llama, path.read_bytes())
    before = snapshot(real.site)
    assert cli.main(["install", "llama", "--python", real.python]) == 0
    assert path.read_bytes() == patched
    assert b"class LlamaForCausalLM(SelfAligned, LlamaPreTrainedModel, GenerationMixin):\n# <<< SelfAug\n" in patched
    assert cli.main(["revert", "--python", real.python]) == 0
    after = snapshot(real.site)
    assert {path: after.get(path) for path in before} == before
