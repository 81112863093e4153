"""Environments with the stand-ins of `stand_ins.py`, and two releases of SelfAug for them."""

from __future__ import annotations

import shutil
import venv
from pathlib import Path

import packaging
import pytest
from stand_ins import TWO, Place, Release, make_newer_release, make_release, put_package

import selfaug_patcher

SCRIPT = """
import multiprocessing, os, subprocess, sys


def release(_=None):
    from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
    from peft.tuners.lora.layer import LoraLayer
    return getattr(Qwen2ForCausalLM, "release", "stock"), hasattr(LoraLayer, "selfaug_reference")


if __name__ == "__main__":
    if sys.argv[1:] == ["child"]:
        print("child", *release())
        sys.exit()
    print("arguments", *sys.argv[1:])
    print("here", *release())
    if sys.argv[1:] == ["all"]:
        subprocess.run([sys.executable, __file__, "child"], check=True)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print("spawned", *pool.map(release, [0])[0])
    sys.exit(7)
"""


@pytest.fixture(scope="session")
def selfaug(tmp_path_factory) -> Release:
    return make_release(tmp_path_factory.mktemp("selfaug"), "0.1.0")


@pytest.fixture(scope="session")
def newer_selfaug(tmp_path_factory) -> Release:
    return make_newer_release(tmp_path_factory.mktemp("newer"))


@pytest.fixture
def make_release_with(tmp_path):
    """Makes a SelfAug with the pins of these releases."""
    return lambda *releases: make_release(tmp_path / "-".join(releases), "0.1.0", releases)


@pytest.fixture
def equipped(place, selfaug, tmp_path):
    """An environment with selfaug_patcher installed as pip would: patches and runtime inside the package."""
    package = place.site / "selfaug_patcher"
    shutil.copytree(Path(selfaug_patcher.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(selfaug.patches, package / "patches")
    shutil.copytree(selfaug.code, package / "runtime")
    (place.site / "packaging").symlink_to(Path(packaging.__file__).parent)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "script.py").write_text(SCRIPT)
    return place


@pytest.fixture
def make_place(tmp_path, selfaug):
    """Makes a virtual environment with the stand-ins in it."""

    def make(name: str | Path = "env", transformers: str | None = "2.0", peft: str | None = "2.0", models=TWO) -> Place:
        root = tmp_path / name
        venv.EnvBuilder(symlinks=True, with_pip=False).create(root)
        place = Place(root, selfaug)
        for package, version in (("transformers", transformers), ("peft", peft)):
            if version:
                put_package(place.site, package, version, models=models)
        return place

    return make


@pytest.fixture
def place(make_place) -> Place:
    return make_place()
