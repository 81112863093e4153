"""uv's link modes, with uv itself where it is installed: only the environment that was asked for changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from snapshots import snapshot
from stand_ins import Place
from test_pip import wheels

__all__ = ["wheels"]
pytestmark = pytest.mark.environments


def find_uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


@pytest.mark.skipif(find_uv() is None, reason="uv is not installed")
@pytest.mark.parametrize("mode", ["hardlink", "copy", "clone", "symlink"])
def test_uv_environments_and_its_cache_stay_apart(tmp_path, selfaug, wheels, mode):
    environment = {**os.environ, "UV_CACHE_DIR": str(tmp_path / "cache"), "UV_OFFLINE": "1", "UV_NO_CONFIG": "1"}

    def uv(*arguments: str) -> None:
        subprocess.run([find_uv(), *arguments], env=environment, check=True, capture_output=True, text=True)

    def fill(place: Place, *more: str) -> None:
        command = ("pip", "install", "--python", place.python, "--link-mode", mode, "--no-index")
        uv(*command, "--find-links", str(wheels), *more, "transformers==2.0", "peft==2.0")

    places = [Place(tmp_path / name, selfaug) for name in ("one", "two")]
    for place in places:
        uv("venv", "--python", sys.executable, str(place.root))
        fill(place)
    one, two = places
    if mode == "hardlink":
        assert one.model.samefile(two.model)
    if mode == "symlink":
        assert one.model.is_symlink()
    stock = one.model.read_bytes()
    before = one.snapshot(), two.snapshot(), content(tmp_path / "cache")
    one.done("install")
    assert one.states() == ("patched", "patched", "installed")
    assert (two.snapshot(), content(tmp_path / "cache")) == before[1:]
    one.done("revert")
    assert (one.snapshot(), two.snapshot(), content(tmp_path / "cache")) == before

    one.done("install")
    fill(one, "--reinstall")
    assert one.model.read_bytes() == stock
    one.done("revert")
    assert one.snapshot().keys() == before[0].keys()


def content(folder: Path) -> dict:
    return {path: entry[-1] for path, entry in snapshot(folder).items() if path.endswith(".py")}
