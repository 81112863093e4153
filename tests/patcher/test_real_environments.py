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
from dataclasses import replace
from pathlib import Path

import pytest
from snapshots import snapshot
from stand_ins import Place

from selfaug_patcher import cli, pins, store, udiff, wheels

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
    assert "KL is positive once it is not" in report
    assert report.count("as stock: ") >= 8
    run(real, capsys, "revert")
    after = snapshot(real.site)
    assert {path: after.get(path) for path in before} == before
    assert {path for path in after if "__pycache__" not in path} == set(before)


# What SelfAug 0.1 put into LoraLayer until it got a base class for it.
OLD_SWITCH = """    # >>> SelfAug (arXiv 2509.03934), added by selfaug_patcher; undo: python -m selfaug_patcher revert
    # True while SelfAug's reference pass runs: this layer then answers as if it had no LoRA, with nothing merged,
    # unmerged or frozen. False at all other times.
    selfaug_reference = False

    @property
    def disable_adapters(self) -> bool:
        return self.selfaug_reference or self._disable_adapters

    # <<< SelfAug
"""


@pytest.fixture
def old_patches(tmp_path):
    """The patches folder with that, and the hashes that it had."""
    folder = Path(shutil.copytree(pins.load().root, tmp_path / "patches"))
    table = pins.load(folder)
    texts = {name: (folder / name).read_text() for name in table.patches if name.startswith("peft/")}
    for name, text in texts.items():
        last = text.splitlines()[-1]
        head = text.split("\n@@")[0]
        added = "".join(f"+{line}\n" for line in OLD_SWITCH.splitlines())
        (folder / name).write_text(f"{head}\n@@ -28,2 +28,12 @@\n class LoraLayer(BaseTunerLayer):\n{added}{last}\n")
    rows = []
    for pin in table.pins:
        wheel = wheels.find("peft", pin.version) if pin.target == "peft:lora" else None
        if pin.target == "peft:lora" and wheel is None:
            continue
        if wheel is not None:
            patched = udiff.apply(pins.read_patch(folder, pin.patch), wheels.read(wheel, pins.TARGETS[1].path))
            pin = replace(pin, patched_sha256=store.digest(patched))
        rows.append(pin)
    (folder / "pins.json").write_text(pins.render(rows))
    return folder


def test_a_peft_with_the_old_switch_is_upgraded_by_install_and_reverted_exactly(real, old_patches, capsys):
    before = snapshot(real.site)
    assert cli.main(["install", "--python", real.python], old_patches) == 0
    layer = real.site / pins.TARGETS[1].path
    assert OLD_SWITCH in layer.read_text()
    capsys.readouterr()
    assert "patched by an older SelfAug" in status(real, capsys)
    run(real, capsys, "install")
    assert OLD_SWITCH not in layer.read_text()
    assert "\nclass LoraLayer(ReferenceSwitch, BaseTunerLayer):\n" in layer.read_text()
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
