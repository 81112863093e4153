"""A shared environment: one user installs, and others, who may not write there, look, run, and have nothing to do."""

from __future__ import annotations

import os
import subprocess

import pytest
from test_environments import loaded
from test_refusals import bound_by_permissions

TOLD = "trial of SelfAug with these packages: some 20 seconds\n"
NOTHING = {
    "install": "SelfAug is installed already: nothing to do.",
    "revert": "SelfAug is not installed: nothing to do.",
}


def close(place) -> None:
    """Take the right to write from everything in the environment."""
    for path in [place.site, *place.site.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o555)


@pytest.fixture
def used(place):
    """An environment with SelfAug, in which both patched files and the runtime have been imported since."""
    place.done("install")
    subprocess.run([place.python, "-c", "import peft.tuners.lora.layer"], check=True, env={"PATH": os.environ["PATH"]})
    assert loaded(place) == "0.1.0"
    for folder in (place.model.parent, place.layer.parent, place.site / "selfaug"):
        assert list((folder / "__pycache__").glob("*.pyc"))
    return place


def test_a_second_install_after_an_import_changes_nothing_and_says_so(used):
    before = used.snapshot()
    result = used.done("install")
    assert result.out.splitlines()[-1] == NOTHING["install"]
    assert used.snapshot() == before
    data = used.done("install", "--json").data
    assert (data["changed"], data["changes"]) == (False, [])


@pytest.mark.parametrize("arguments", ["install", "install --dry-run", "status", "verify", "diff"])
def test_a_user_who_may_not_write_uses_a_patched_environment(used, arguments):
    close(used)
    before = used.snapshot()
    result = bound_by_permissions(used, *arguments.split())
    assert (result.returncode, result.stderr) == (0, TOLD if arguments == "verify" else "")
    assert "install" not in arguments or result.stdout.splitlines()[-1] == NOTHING["install"]
    assert used.snapshot() == before


@pytest.mark.parametrize("arguments", ["revert", "revert --dry-run", "status", "diff"])
def test_a_user_who_may_not_write_finds_nothing_to_revert(place, arguments):
    close(place)
    result = bound_by_permissions(place, *arguments.split())
    assert (result.returncode, result.stderr) == (0, "")
    assert "revert" not in arguments or result.stdout.splitlines()[-1] == NOTHING["revert"]


def test_what_a_killed_run_left_lying_does_not_stop_a_user_who_may_not_remove_it(used):
    (used.site / ".selfaug" / "stage").mkdir()
    (used.site / ".selfaug" / "stage" / "0.new").write_text("half\n")
    (used.site / ".selfaug" / "lock").touch()
    close(used)
    for arguments in ("install", "install --dry-run", "status", "verify", "diff"):
        result = bound_by_permissions(used, *arguments.split())
        assert (result.returncode, result.stderr) == (0, TOLD if arguments == "verify" else ""), arguments


def test_an_unfinished_run_is_named_to_a_user_who_may_not_undo_it(used):
    (used.site / ".selfaug" / "journal.json").write_text('{"verb": "install", "entries": []}')
    close(used)
    result = bound_by_permissions(used, "status")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"note: {used.site / '.selfaug'} has the journal of a run that has not ended" in result.stdout
    assert bound_by_permissions(used, "install").returncode == 5


def test_a_user_who_may_not_write_is_told_so_where_there_is_something_to_do(used, newer_selfaug):
    close(used)
    used.selfaug, older = newer_selfaug, used.selfaug
    assert bound_by_permissions(used, "install").returncode == 5
    used.selfaug = older
    result = bound_by_permissions(used, "revert")
    assert (result.returncode, result.stderr.split(":")[0]) == (5, "error[not-writable]")


def test_revert_needs_no_lock_where_only_another_environments_copy_is_patched(make_place):
    base, inner = make_place("base"), make_place("inner")
    (inner.site / "_system.pth").write_text(str(base.site))
    base.done("install")
    close(base)
    result = bound_by_permissions(inner, "revert")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == NOTHING["revert"]


def test_the_stock_bytecode_beside_a_file_that_is_replaced_still_goes(used, newer_selfaug):
    cache = used.model.parent / "__pycache__"
    kept = {path: path.read_bytes() for path in cache.glob("modeling_qwen2.*.pyc")}
    used.done("install", selfaug=newer_selfaug)
    assert not [path for path, content in kept.items() if path.exists() and path.read_bytes() == content]
    assert loaded(used, "-B") == "0.2.0"
