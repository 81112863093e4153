"""`str.isdigit` is true for characters that `int` does not read, such as a superscript."""

from __future__ import annotations

from pathlib import Path

import pytest

import selfaug_patcher
from selfaug_patcher import pins, status


def test_a_release_that_ends_in_a_superscript_is_in_no_range():
    rows = [pins.Pin("transformers:qwen2", version, "1" * 64, "2" * 64, "") for version in ("1.0.1", "1.0.²")]
    assert pins.releases_text(rows) == "1.0.1, 1.0.²"


def test_a_folder_named_by_a_superscript_is_no_process_and_hides_none(tmp_path, monkeypatch):
    receipt = tmp_path / "site" / ".selfaug" / "receipt.json"
    for name in ("4", "²"):
        (tmp_path / "proc" / name).mkdir(parents=True)
        (tmp_path / "proc" / name / "maps").write_text(f"{tmp_path / 'site'}/torch.so")
        (tmp_path / "proc" / name / "cmdline").write_text("train")
    receipt.parent.mkdir(parents=True)
    receipt.touch()
    monkeypatch.setattr(status, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(status, "_started", lambda process: 0.0)
    assert status.older_than(receipt) == ["4 (train)"]


@pytest.mark.parametrize("package", ["selfaug_patcher", "Code"])
def test_no_module_asks_isdigit_alone(package):
    root = Path(selfaug_patcher.__file__).parents[1] / package
    if not root.is_dir():
        pytest.skip("there is no checkout here")
    lines = [
        f"{path.name}: {line}" for path in root.rglob("*.py") for line in path.read_text(encoding="utf-8").splitlines()
    ]
    assert [line for line in lines if ".isdigit()" in line and ".isascii()" not in line] == []
