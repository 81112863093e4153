"""The real thing: released packages from their wheels, patched, verified and reverted, in environments of their own.

torch and everything else comes from the environment that runs the tests; transformers, peft and what must fit the
release lie in front of it.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv

import pytest
from snapshots import snapshot
from stand_ins import Place

from selfaug_patcher import cli, wheels

pytestmark = pytest.mark.environments

PAIRS = {
    "newest": ("5.23.0", "0.21.2", ()),
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


def test_a_script_is_patched_from_memory(real):
    code = "from transformers import Qwen2ForCausalLM as M; print([base.__name__ for base in M.__mro__][1])"
    script = real.root / "script.py"
    script.write_text(code)
    command = [sys.executable, "-m", "selfaug_patcher", "run", "--python", real.python, str(script)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stdout == "SelfAligned\n", result.stderr
    assert not (real.site / "selfaug").exists()
