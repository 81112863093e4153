"""docs/results.md names every option of the study, and its recipe for a public set writes what the study reads."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import questions
import records
import summary
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


def rounded(estimate, digits=2):
    return f"{estimate['mean']:+.{digits}f} [{estimate['low']:+.{digits}f}, {estimate['high']:+.{digits}f}]"


def test_the_table_of_what_each_part_of_economy_keeps_is_that_of_the_summary():
    arms = json.loads((PAGE.with_suffix("") / "study.json").read_text(encoding="utf-8"))["arms"]
    lora, whole = (arms[name]["estimates"]["kl"] for name in ("lora", "selfaug-0.5"))
    rows = re.findall(r"^\| (every \d|1/\d+ \w+(?: \w+)?) \| (.*) \| (.*) \| (.*) % \| (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 7
    for title, ratio, by_seed, effect, exact_match in rows:
        name = title.replace("every ", "every-") if "every" in title else f"{title.split()[-1]}-{title[2:].split()[0]}"
        kl = arms[name]["estimates"]["kl"]
        assert ratio == f"{kl['mean'] / whole['mean']:.2f}"
        assert by_seed == ", ".join(f"{one / other:.2f}" for one, other in zip(kl["by_seed"], whole["by_seed"]))
        assert effect == f"{100 * (lora['mean'] - kl['mean']) / (lora['mean'] - whole['mean']):.0f}"
        assert exact_match == rounded(arms[name]["differences"]["selfaug-0.5"]["exact_match"])


def test_the_two_arms_at_a_third_of_the_rate_differ_as_the_page_says():
    runs = records.read(PAGE.with_suffix("") / "runs")
    by_arm = {name: {r["seed"]: r for r in runs if r["arm"] == name} for name in ("selfaug-lower-lr", "lower-lr")}
    found = summary.difference("selfaug-lower-lr", "lower-lr", by_arm)
    assert f"({rounded(found['exact_match'])}), drifts" in TEXT
    less = {name: -found["kl"][name] for name in ("mean", "low", "high")}
    assert f"drifts {less['mean']:.2f} [{less['high']:.2f}, {less['low']:.2f}] less" in TEXT


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
