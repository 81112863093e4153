"""Environments with the stand-ins of `stand_ins.py`, and two releases of SelfAug for them."""

from __future__ import annotations

import venv
from pathlib import Path

import pytest
from stand_ins import Place, Release, make_release, put_package


@pytest.fixture(scope="session")
def selfaug(tmp_path_factory) -> Release:
    return make_release(tmp_path_factory.mktemp("selfaug"), "0.1.0")


@pytest.fixture(scope="session")
def newer_selfaug(tmp_path_factory) -> Release:
    """A later SelfAug with other patches and another runtime: one module less, and another package."""
    release = make_release(tmp_path_factory.mktemp("newer"), "0.2.0", mark="  # 0.2")
    (release.code / "hooks.py").write_text(
        'from .tools.step import PART\n\n\nclass SelfAligned:\n    release = step = "0.2.0"\n    part = PART\n\n\n'
        "class ReferenceSwitch:\n    selfaug_reference = False\n"
    )
    (release.code / "step.py").unlink()
    (release.code / "kit").rename(release.code / "tools")
    (release.code / "tools" / "part.py").rename(release.code / "tools" / "step.py")
    return release


@pytest.fixture
def make_place(tmp_path, selfaug):
    """Makes a virtual environment with the stand-ins in it."""

    def make(name: str | Path = "env", transformers: str | None = "2.0", peft: str | None = "2.0") -> Place:
        root = tmp_path / name
        venv.EnvBuilder(symlinks=True, with_pip=False).create(root)
        place = Place(root, selfaug)
        for package, version in (("transformers", transformers), ("peft", peft)):
            if version:
                put_package(place.site, package, version)
        return place

    return make


@pytest.fixture
def place(make_place) -> Place:
    return make_place()
