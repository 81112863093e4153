"""docs/self-dialogue.md names every option and every filter, and none that is not there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from selfaug.self_dialogue import cli, filters, formats

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "self-dialogue.md"
BASIC = {"--help", "--model", "--dialogues"}  # the commands at the top show them


def options():
    (verbs,) = (action for action in cli.parser()._actions if action.choices)
    return {name for verb in verbs.choices.values() for action in verb._actions for name in action.option_strings}


def test_every_option_is_on_the_page_and_every_one_on_the_page_exists():
    named = set(re.findall(r"(?<!\w)--[a-z]+(?:-[a-z]+)*", PAGE.read_text(encoding="utf-8")))
    there = {name for name in options() if name.startswith("--")}
    assert named - there == set()
    assert there - BASIC - named == set()


def test_every_filter_and_format_is_on_the_page():
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in (*filters.REASONS, *formats.FORMATS) if f"`{name}`" not in text] == []


def test_the_command_of_the_page_runs_from_a_checkout():
    command = [sys.executable, "-m", "selfaug_patcher", "run", "-m", "selfaug.self_dialogue", "mix", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("usage: python -m selfaug.self_dialogue mix ")
