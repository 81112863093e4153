"""docs/demo.md names every option, and its figures are those of the data and of its table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import ragset

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")


def test_every_option_is_on_the_page_and_every_one_on_the_page_exists():
    command = [sys.executable, str(ROOT / "Code" / "examples" / "demo"), "--help"]
    there = set(re.findall(r"--[a-z-]+", subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    assert set(re.findall(r"(?<!\w)--[a-z]+(?:-[a-z]+)*", TEXT)) == there - {"--help"}


def test_the_share_of_questions_in_new_words_is_that_of_the_data():
    found = re.search(r"(\d+) of the (\d+) questions \((\d+) of the (\d+) in\s+the quick form\)", TEXT).groups()
    for train, (held_out, test) in zip((80, 48), (found[:2], found[2:])):
        questions = ragset.generate(train, int(test))[1]
        assert sum(one.held_out_wording for one in questions) == int(held_out)


def test_the_length_of_an_answer_is_that_of_the_table():
    row = re.search(r"median answer, tokens +(\d+) +(\d+)", TEXT)
    assert "an answer of {} tokens becomes one of {}".format(*row.groups()) in TEXT
