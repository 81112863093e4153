"""docs/retention.md names every option and every figure, and none that is not there."""

from __future__ import annotations

import re
from pathlib import Path

from selfaug.retention import __main__ as command
from selfaug.retention import instructions, plots

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "retention.md").read_text(encoding="utf-8")
HARNESS = {"--model", "--model_args", "--tasks", "--apply_chat_template", "--output_path", "--include_path", "--limit"}


def test_every_option_is_on_the_page_and_every_one_on_the_page_exists():
    named = set(re.findall(r"(?<!\w)--[a-z]+(?:[-_][a-z]+)*", PAGE))
    there = {name for action in command.parser()._actions for name in action.option_strings if name.startswith("--")}
    assert named - there - HARNESS == set()
    assert there - named == {"--help"}


def test_every_plot_and_the_number_of_instructions_are_on_the_page():
    for plot in (plots.learned_against_kept, plots.kl_by_position, plots.training, plots.shift_against_forgetting):
        assert f"`{plot.__name__}`" in PAGE
    assert f"{len(instructions.INSTRUCTIONS)}\n[instructions]" in PAGE
