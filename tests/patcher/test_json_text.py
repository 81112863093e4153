"""JSON from outside that is nested deeper than Python reads is an error like any other that cannot be read."""

from __future__ import annotations

import subprocess
import sys

import pytest

from selfaug_patcher import checkpoint, environment, json_text, run, trial
from selfaug_patcher.errors import PatcherError

DEEP = "[" * 200_000


def test_json_that_is_nested_too_deeply_is_no_json():
    with pytest.raises(ValueError, match="nested too deeply"):
        json_text.parse(DEEP)


def answers(text):
    return lambda *_, **__: subprocess.CompletedProcess([], 0, text, "")


def test_a_deep_answer_of_an_interpreter_is_the_error_of_one_that_gives_none(monkeypatch):
    monkeypatch.setattr(environment, "_run", answers(DEEP))
    with pytest.raises(PatcherError, match="did not say what it would import"):
        environment.discover(sys.executable)


def test_a_deep_config_is_one_that_cannot_be_read(monkeypatch):
    here = environment.discover(sys.executable)
    monkeypatch.setattr(environment, "_run", answers(DEEP))
    with pytest.raises(PatcherError, match="cannot read the config"):
        checkpoint.read(here, "mine")


def test_a_deep_line_of_the_trial_and_a_deep_variable_of_a_run_say_nothing(monkeypatch):
    monkeypatch.setenv(run.TOLD, DEEP)
    assert (trial._object(DEEP), run._told()) == ({}, {})
