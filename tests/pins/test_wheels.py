"""The cache finds wheels by name, reads one file out of them, and is filled through pip; here from a local folder."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from selfaug_patcher.errors import PatcherError
from selfaug_patcher.maintain import wheels
from selfaug_patcher.seam import MAX_FILE_BYTES

FILE = "demo/tuners/layer.py"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """pip takes wheels from a folder, and only from there; the cache is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    for version in ("1.0", "1.1"):
        with zipfile.ZipFile(folder / f"demo-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr(FILE, f"version = {version}\n")
            archive.writestr(
                f"demo-{version}.dist-info/METADATA", f"Name: demo\nVersion: {version}\nRequires-Dist: not-to-be-had\n"
            )
            archive.writestr(
                f"demo-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"demo-{version}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("SELFAUG_WHEEL_CACHE", str(tmp_path / "cache" / "wheels"))
    return folder


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SELFAUG_WHEEL_CACHE", str(tmp_path))
    assert wheels.cache() == tmp_path
    monkeypatch.setenv("SELFAUG_WHEEL_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wheels.cache() == tmp_path / ".cache" / "selfaug" / "wheels"


def test_a_wheel_is_fetched_once_and_leaves_nothing_else(index):
    assert wheels.find("demo", "1.0") is None
    path = wheels.fetch("demo", "1.0")
    assert path == wheels.cache() / "demo-1.0-py3-none-any.whl"
    assert wheels.read(path, FILE) == b"version = 1.0\n"
    (index / path.name).unlink()
    assert wheels.fetch("demo", "1.0") == path
    assert list(wheels.cache().iterdir()) == [path]


def test_a_release_that_pip_cannot_deliver_is_told_in_its_words(index):
    with pytest.raises(PatcherError) as caught:
        wheels.fetch("demo", "9.9")
    assert "pip could not download demo 9.9" in str(caught.value)
    assert "No matching distribution found for demo==9.9" in str(caught.value)
    assert list(wheels.cache().iterdir()) == []


def test_progress_is_a_line_per_wheel_where_there_is_no_terminal(index):
    wheels.cache().mkdir(parents=True)
    (index / "demo-1.0-py3-none-any.whl").rename(wheels.cache() / "demo-1.0-py3-none-any.whl")
    stream = io.StringIO()
    wheels.fetch_all([("demo", "1.0"), ("demo", "1.1"), ("demo", "1.1")], stream)
    assert stream.getvalue() == f"wheels 0/1: demo 1.1\nwheels 1/1: 1 wheels in {wheels.cache()}\n"


def test_progress_is_a_bar_on_a_terminal(index):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with pytest.raises(PatcherError):
        wheels.fetch_all([("demo", "1.1"), ("demo", "9.9")], stream)
    assert stream.getvalue().count("\r") == 2
    assert "[" + "#" * 15 + "." * 15 + "] 1/2  demo 9.9" in stream.getvalue()
    assert stream.getvalue().endswith("\n")


def test_nothing_is_said_where_nothing_is_missing(index):
    stream = io.StringIO()
    wheels.fetch_all([], stream)
    assert stream.getvalue() == ""


def test_a_file_that_the_wheel_lacks_is_none(index):
    assert wheels.read(index / "demo-1.0-py3-none-any.whl", "demo/other.py") is None


def test_a_wheel_cut_short_is_refused(index):
    path = index / "demo-1.0-py3-none-any.whl"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(PatcherError, match=r"demo-1.0-py3-none-any.whl cannot be read"):
        wheels.read(path, FILE)


def test_a_file_that_unpacks_without_end_is_refused(tmp_path):
    path = tmp_path / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE, b"\n" * (MAX_FILE_BYTES + 1))
    with pytest.raises(PatcherError, match="is not a source file"):
        wheels.read(path, FILE)


def test_the_summary_says_how_many_pins_were_not_proved_even_if_none_was(tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent)]
    env = {**os.environ, "SELFAUG_WHEEL_CACHE": str(tmp_path), "SELFAUG_PROVE_ALL": "0"}
    run = subprocess.run([*command, "-k", "peft-0.6.0"], capture_output=True, text=True, env=env)
    assert f"pins: 0 of 1 proved from real files; 1 not: no wheel in {tmp_path}" in run.stdout
