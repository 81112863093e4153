"""docs/installing.md names every error, and every verb."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from selfaug_patcher import cli

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")
MAINTAINERS = {"pin.py", "rebase.py", "wheels.py"}


def test_every_error_of_the_patcher_is_in_the_table():
    ids = set()
    for path in (ROOT / "selfaug_patcher").glob("*.py"):
        if path.name not in MAINTAINERS:
            ids |= set(re.findall(r'(?:\bid=|\bProblem\(\s*)(?:\(?)"([a-z-]+)"', path.read_text(encoding="utf-8")))
    table = set(re.findall(r"`([a-z-]+)`", PAGE.split("## What it refuses")[1]))
    assert len(ids) > 20
    assert ids - table == set()


def test_every_verb_is_on_the_page(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    verbs = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert len(verbs) >= 7
    assert [verb for verb in verbs if f"`{verb}" not in PAGE and verb != "pin"] == []
