"""The tools beside the training step: `install` brings them along, and an older layout leaves nothing behind."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from snapshots import snapshot
from stand_ins import Place, Release

from selfaug_patcher import cli

CODE = Path(__file__).resolve().parents[2] / "Code"
TOOLS = ("toolkit", "self_dialogue", "retention")
COMMANDS = ("self_dialogue", "retention", "reference_cache")
# The modules of the tools in the layout before this one.
BEFORE = {
    "toolkit": "errors files messages tokens",
    "self_dialogue": "__main__ chat cli dialogue_log dialogues filters generator manifest mixture nucleus overlap "
    "rowfiles rows selftalk tally",
    "retention": "__main__ answers bench bootstrap drift form harness history instructions items measurement plots "
    "prompts readout report scores summary vocabulary",
}


def modules(folder: Path) -> set[str]:
    """The paths of all modules below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


@pytest.fixture
def old_layout(selfaug, tmp_path) -> Release:
    code = Path(shutil.copytree(selfaug.code, tmp_path / "old"))
    for tool, names in BEFORE.items():
        (code / tool).mkdir()
        for name in ["__init__", *names.split()]:
            (code / tool / f"{name}.py").write_text(f'"""{tool}.{name} of the old layout."""\n')
    return Release(selfaug.patches, code)


@pytest.fixture
def new_layout(newer_selfaug, tmp_path) -> Release:
    code = Path(shutil.copytree(newer_selfaug.code, tmp_path / "new"))
    for tool in TOOLS:
        shutil.copytree(CODE / tool, code / tool, ignore=shutil.ignore_patterns("__pycache__"))
    return Release(newer_selfaug.patches, code)


@pytest.mark.parametrize("ends_with", ["new", "old"])
def test_the_old_layout_of_the_tools_is_upgraded_and_reverted_to_stock(place, old_layout, new_layout, ends_with):
    before = place.snapshot()
    runtime = place.site / "selfaug"
    for release in (old_layout, new_layout, old_layout)[: 2 if ends_with == "new" else 3]:
        place.done("install", selfaug=release)
        assert place.states(selfaug=release) == ("patched", "patched", "installed")
        for tool in TOOLS:
            assert modules(runtime / tool) == modules(release.code / tool)
        subprocess.run([place.python, "-m", "compileall", "-q", str(runtime)], check=True)  # bytecode goes, too
    place.done("revert", selfaug=release)
    assert place.snapshot() == before


def test_the_layouts_differ_so_that_an_upgrade_removes_and_adds_modules(old_layout):
    for tool in ("self_dialogue", "retention"):
        assert modules(old_layout.code / tool) - modules(CODE / tool), tool
        assert modules(CODE / tool) - modules(old_layout.code / tool), tool


@pytest.fixture(scope="module")
def furnished(tmp_path_factory) -> Place:
    """An environment with transformers and peft of the environment that runs the tests; torch comes from there."""
    pytest.importorskip("torch")
    place = Place(tmp_path_factory.mktemp("tools") / "env", None)
    venv.EnvBuilder(symlinks=True, with_pip=False).create(place.root)
    for package in ("transformers", "peft"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            pytest.skip(f"{package} is not installed")
        for folder in (Path(spec.origin).parent, Path(importlib.metadata.distribution(package)._path)):
            shutil.copytree(folder, place.site / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    (place.site / "zz-shared.pth").write_text(sysconfig.get_path("purelib"))
    return place


def test_after_install_every_command_of_the_tools_shows_its_help_and_revert_takes_them_away(furnished, tmp_path):
    before = snapshot(furnished.site)
    assert cli.main(["install", "--python", furnished.python]) == 0
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for command in COMMANDS:
        run = subprocess.run(
            [furnished.python, "-m", f"selfaug.{command}", "--help"],
            cwd=tmp_path, env=variables, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert run.stdout.startswith(f"usage: python -m selfaug.{command} "), run.stdout
    assert cli.main(["revert", "--python", furnished.python]) == 0
    after = snapshot(furnished.site)
    assert {path: state for path, state in after.items() if "__pycache__" not in path} == before
