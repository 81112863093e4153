"""docs/installing.md names every error, and every verb."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from selfaug_patcher import cli, payload

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "installing.md").read_text(encoding="utf-8")


def test_every_error_of_the_patcher_is_in_the_table():
    ids = set()
    for path in (ROOT / "selfaug_patcher").glob("*.py"):
        ids |= set(re.findall(r'(?:\bid=|\bProblem\(\s*)(?:\(?)"([a-z-]+)"', path.read_text(encoding="utf-8")))
    table = set(re.findall(r"`([a-z-]+)`", PAGE.split("## What it refuses")[1]))
    assert len(ids) > 20
    assert ids - table == set()


# What neither has an alternative nor finds anything: a Ctrl-C; an error that the system reports in its own words.
SHORT = {"interrupted": {"expected", "found"}, "file-system": {"expected"}}


def test_every_refusal_says_what_was_expected_what_was_found_and_what_to_do():
    short = {}
    for path in (ROOT / "selfaug_patcher").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                names = ("id", "what", "expected", "found", "do")
                given = dict(zip(names, node.args)) | {word.arg: word.value for word in node.keywords}
                name = [n.value for n in ast.walk(given["id"]) if isinstance(n, ast.Constant)][-1]
                if set(names) - set(given):
                    short[name] = set(names) - set(given)
    assert short == SHORT


def test_every_verb_is_on_the_page(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    verbs = re.findall(r"^    ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)
    assert len(verbs) >= 7
    assert [verb for verb in verbs if f"`{verb}" not in PAGE and verb != "pin"] == []


def test_the_version_is_that_of_the_runtime_and_no_verb_is_needed(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"SelfAug {payload.load().version}\n"


def test_the_version_of_an_incomplete_checkout_is_an_error_and_no_traceback(monkeypatch, tmp_path, capsys):
    load = payload.load
    monkeypatch.setattr(payload, "load", lambda: load(tmp_path))
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("error[no-runtime]: SelfAug's own modules are missing")
