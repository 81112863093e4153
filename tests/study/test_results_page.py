"""docs/results.md names every option of the study, and its recipe for a public set writes what the study reads."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import questions
import tables

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results.md"
TEXT = PAGE.read_text(encoding="utf-8")
STUDY = runpy.run_path(str(ROOT / "Code" / "examples" / "study" / "__main__.py"), run_name="study_command")


def test_every_option_is_on_the_page_and_every_one_on_the_page_exists():
    there = {name for action in STUDY["parser"]()._actions for name in action.option_strings if name.startswith("--")}
    assert set(re.findall(r"(?<!\w)--[a-z]+(?:-[a-z]+)*", TEXT)) == there - {"--help"}


def test_the_commands_on_the_page_are_accepted():
    commands = re.findall(r"^    python Code/examples/study (.*)$", TEXT, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        STUDY["parser"]().parse_args(command.split())


def test_the_defaults_on_the_page_are_those_of_the_setting():
    rows = re.findall(r"^\| (`--train`.*|`--dialogues`.*|`--inputs`.*) \| (.*) \| .*\|$", TEXT, re.MULTILINE)
    listed = {}
    for options, defaults in rows:
        names = re.findall(r"--([a-z-]+)", options)
        listed.update(zip((name.replace("-", "_") for name in names), map(float, defaults.split(", "))))
    assert listed == vars(STUDY["Setting"]())


def test_the_page_has_one_place_for_the_generated_block():
    assert TEXT.count(tables.BEGIN) == TEXT.count(tables.END) == 1


def test_the_recipe_for_hotpotqa_writes_rows_that_the_study_reads(tmp_path, monkeypatch):
    recipe = re.search(r"<!-- hotpot -->\n```python\n(.*?)```\n<!-- end of hotpot -->", TEXT, re.DOTALL).group(1)
    titles = ["Arlow", "Senn", "Kolstea", "Brae"]
    one = {
        "question": "Where?",
        "answer": "in Senn",
        "context": {"title": titles, "sentences": [[f"{title} is a place.", " It rains."] for title in titles]},
        "supporting_facts": {"title": ["Kolstea", "Kolstea"], "sent_id": [0, 1]},
    }
    module = ModuleType("datasets")
    module.load_dataset = lambda name, configuration, split: [{**one, "question": f"Where {n}?"} for n in range(6)]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.chdir(tmp_path)
    exec(compile(recipe, "recipe", "exec"), {})
    training, test = questions.of_files(tmp_path / "hotpot-train.jsonl", tmp_path / "hotpot-test.jsonl", 3, 3, 0)
    assert json.loads(json.dumps(test[0]))["answer"] == "in Senn"
    prompt = training[0]["messages"][0]["content"]
    assert "Kolstea is a place. It rains." in prompt
    assert prompt.count("is a place") == 3
