"""pip at work on a patched environment: what is left, what status says, and what install and revert then do."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile

import pytest
from stand_ins import package_files


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """Wheels of the stand-ins, made without any build tool."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("transformers", "peft"):
        for version in ("1.0", "1.1", "1.7", "2.0"):
            info = f"{name}-{version}.dist-info"
            files = package_files(name, version)
            files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            record = "".join(f"{path},,\n" for path in files)
            files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
            with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
                for path, text in files.items():
                    wheel.writestr(path, text)
    return folder


@pytest.fixture
def pip(make_place, wheels):
    """An environment that pip has filled, and pip for it."""
    place = make_place(transformers=None, peft=None)

    def run(*arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", place.python, "--disable-pip-version-check", *arguments]
        environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PYTHONPATH": ""}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    run("install", "transformers==1.1", "peft==1.1")
    place.pip = run
    return place


def importable(place, name: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([place.python, "-c", code], check=False).returncode == 0


def nothing_of_ours(place) -> bool:
    return not any((place.site / name).exists() for name in (".selfaug", "selfaug"))


@pytest.mark.environments
def test_pips_bytecode_is_there_again_after_revert(pip):
    before = pip.snapshot()
    assert any(path.endswith(f"modeling_qwen2.{sys.implementation.cache_tag}.pyc") for path in before)
    pip.done("install")
    pip.done("revert")
    assert pip.snapshot() == before


@pytest.mark.environments
def test_an_upgrade_while_patched_is_stock_again_and_can_be_installed_anew(pip):
    pip.done("install")
    pip.pip("install", "-U", "transformers==2.0")
    newer = pip.model.read_bytes()
    assert pip.states() == ("stock", "patched", "leftover")
    assert pip.run("status").code == 1
    pip.done("install")
    assert pip.states() == ("patched", "patched", "installed")
    pip.done("revert")
    assert pip.model.read_bytes() == newer
    assert nothing_of_ours(pip)


def test_revert_after_an_upgrade_never_puts_the_older_original_back(pip):
    pip.done("install")
    pip.pip("install", "-U", "transformers==2.0", "peft==2.0")
    newer = pip.model.read_bytes(), pip.layer.read_bytes()
    result = pip.done("revert")
    assert "transformers was 1.1 at install and is 2.0 now: its file is left as it is." in result.out
    assert (pip.model.read_bytes(), pip.layer.read_bytes()) == newer
    assert nothing_of_ours(pip)


@pytest.mark.environments
def test_a_downgrade_to_an_unpinned_release_is_told_and_revert_still_cleans_up(pip):
    pip.done("install")
    pip.pip("install", "transformers==1.7")
    unpinned = pip.model.read_bytes()
    result = pip.run("install")
    assert (result.code, "error[unpinned-release]: no verified patch for transformers 1.7" in result.err) == (3, True)
    assert pip.states() == ("unsupported", "patched", "leftover")
    pip.done("revert")
    assert pip.model.read_bytes() == unpinned
    assert pip.states() == ("unsupported", "stock", "missing")
    assert nothing_of_ours(pip)


@pytest.mark.environments
def test_a_forced_reinstall_gives_stock_and_leaves_the_rest_in_order(pip):
    pip.done("install")
    pip.pip("install", "--force-reinstall", "transformers==1.1")
    assert pip.states() == ("stock", "patched", "leftover")
    result = pip.done("revert")
    assert "transformers was reinstalled since" in result.out
    assert pip.states() == ("stock", "stock", "missing")
    assert nothing_of_ours(pip)


@pytest.mark.environments
def test_reinstalling_the_same_version_keeps_the_patch(pip):
    pip.done("install")
    pip.pip("install", "transformers==1.1")
    assert pip.states() == ("patched", "patched", "installed")


@pytest.mark.environments
@pytest.mark.parametrize("names", [("transformers",), ("peft",), ("transformers", "peft")])
def test_an_uninstalled_package_is_not_importable_and_revert_removes_the_rest(pip, names):
    pip.done("install")
    pip.pip("uninstall", "-y", *names)
    assert [importable(pip, name) for name in ("transformers", "peft")] == [
        name not in names for name in ("transformers", "peft")
    ]
    assert not any((pip.site / name).exists() for name in names)
    status = pip.status()
    assert [target["state"] for target in status["targets"]] == [
        "missing" if name in names else "patched" for name in ("transformers", "peft")
    ]
    if "transformers" in names:
        assert any("left behind" in note for note in status["notes"]) or status["runtime"]["state"] != "installed"
    pip.done("revert")
    assert nothing_of_ours(pip)
    assert not importable(pip, "selfaug")


@pytest.mark.environments
def test_an_uninstall_after_revert_leaves_nothing(pip):
    pip.done("install")
    pip.done("revert")
    pip.pip("uninstall", "-y", "transformers", "peft")
    assert not any((pip.site / name).exists() for name in ("transformers", "peft", "selfaug", ".selfaug"))
