"""Runs that were cut short: by a kill, after which folders disappear; by Ctrl-C, which is told what it left."""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import signal

import faults
import pytest
from stand_ins import Release

from selfaug_patcher import cli, lock, transaction
from selfaug_patcher import install as installing
from selfaug_patcher import plan as planning


def killed(place, verb: str, selfaug: Release | None = None) -> None:
    """Run a verb that is killed when all is in place and only the journal is left to remove."""

    def action() -> None:
        def kill(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        execute = planning.execute
        planning.execute = lambda verb, operations, keep, check: execute(verb, operations, keep, check=kill)
        place.run(verb, selfaug=selfaug)

    assert faults.forked(action) == -signal.SIGKILL
    assert (place.site / ".selfaug" / "journal.json").exists()


@pytest.fixture
def compiled(place):
    """An environment with bytecode, as pip leaves it."""
    for path in (place.model, place.layer):
        py_compile.compile(str(path), doraise=True)
    return place


def purge(place) -> None:
    for cache in list(place.site.rglob("__pycache__")):
        shutil.rmtree(cache)


def test_revert_restores_the_source_where_all_bytecode_was_purged(compiled):
    stock = compiled.snapshot()
    compiled.done("install")
    purge(compiled)
    compiled.done("revert")
    assert compiled.snapshot() == {name: entry for name, entry in stock.items() if "__pycache__" not in name}


@pytest.mark.parametrize("after", ["status", "install", "revert"])
@pytest.mark.parametrize("verb", ["install", "revert"])
def test_a_purge_of_all_bytecode_after_a_kill_is_no_dead_end(compiled, verb, after):
    stock = compiled.snapshot()
    if verb == "revert":
        compiled.done("install")
    killed(compiled, verb)
    purge(compiled)
    assert f"An interrupted {verb} was found" in compiled.done(after).out
    compiled.done("revert")
    assert compiled.snapshot() == {name: entry for name, entry in stock.items() if "__pycache__" not in name}


def test_a_runtime_removed_by_hand_after_a_kill_is_named_and_left(place, newer_selfaug):
    before = place.snapshot()
    place.done("install")
    killed(place, "install", newer_selfaug)
    shutil.rmtree(place.site / "selfaug")
    told = place.run("status").out
    assert f"The folder of {place.site / 'selfaug' / 'step.py'} is gone: it was left as it is." in told
    place.done("revert")
    assert place.snapshot() == before


def control_c(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def told(place, *arguments: str) -> str:
    """The state that a command which is interrupted says things are in."""
    return place.run(*arguments, "--json").data["error"]["state"]


def test_ctrl_c_before_anything_is_changed_says_so(place, monkeypatch):
    monkeypatch.setattr(installing, "plan", control_c)
    assert place.run("install").err == (
        "error[interrupted]: the command was interrupted (Ctrl-C)\n"
        "  do:       run the same command again\n"
        "Nothing was changed.\n"
    )
    assert told(place, "install") == "Nothing was changed."


def test_ctrl_c_on_the_way_puts_everything_back(place, monkeypatch):
    before = place.snapshot()
    monkeypatch.setattr(installing, "_check", control_c)
    assert told(place, "install") == transaction.UNDONE
    assert place.snapshot() == before


def test_a_second_ctrl_c_while_all_is_put_back_does_not_say_that_it_was(place, monkeypatch):
    before = place.snapshot()
    with monkeypatch.context() as context:
        context.setattr(installing, "_check", control_c)
        context.setattr(transaction, "_undo", control_c)
        assert told(place, "install") == transaction.HALFWAY
    assert (place.site / "selfaug" / "hooks.py").exists()
    with monkeypatch.context() as context:
        context.setattr(transaction, "_undo", control_c)
        assert told(place, "status") == transaction.HALFWAY
    assert "An interrupted install was found" in place.done("status").out
    assert place.snapshot() == before


AFTERWARDS = [(transaction, "tidy"), (lock, "_release"), (planning, "look_again"), (cli, "_print")]


@pytest.mark.parametrize(("module", "name"), AFTERWARDS, ids=[name for _, name in AFTERWARDS])
def test_ctrl_c_when_all_has_happened_says_that_it_has(place, monkeypatch, module, name):
    original = getattr(module, name)

    def interrupt_once_installed(*arguments: object, **options: object) -> object:
        installed = (place.site / ".selfaug" / "receipt.json").exists()
        result = None if name == "_print" else original(*arguments, **options)
        return control_c() if installed else result

    with monkeypatch.context() as context:
        context.setattr(module, name, interrupt_once_installed)
        assert re.match("SelfAug( 0.1.0)? is installed.", told(place, "install"))
    assert place.states() == ("patched", "patched", "installed")
    monkeypatch.setattr(planning, "look_again", control_c)
    assert told(place, "revert") == transaction.DONE["revert"]
    assert place.states() == ("stock", "stock", "missing")
