from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import experiments
import pytest
import records
import summary
import tables
from sandbox import StepFailed

COMMAND = Path(tables.__file__).with_name("__main__.py")
STUDY = runpy.run_path(str(COMMAND), run_name="study_command")


@pytest.fixture
def found(record):
    return [
        record("base", None, kl=0.0, exact_match=(0, 0, 0, 0, 0)),
        *(record("lora", seed, kl=0.5 + 0.1 * seed) for seed in (0, 1, 2)),
        *(record("selfaug-0.5", seed, kl=0.2, exact_match=(1, 1, 1, 0, 1), cpu_per_step=3.0) for seed in (0, 1, 2)),
        record("sasft", 0, kl=0.4, dialogues_cpu_seconds=200.0),
        record("interpolation", 0, kl=0.3),
    ]


def cells(text, title):
    """The cells of the first row of that title."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_its_seeds_what_was_learned_kept_and_spent(found):
    text = tables.figures(summary.summarise(found))
    assert cells(text, "LoRA")[1:3] == ["3", "0.60 ± 0.22"]
    assert cells(text, "LoRA")[5].startswith("0.600 ± 0.0")
    assert cells(text, "LoRA")[-3:] == ["2.00", "96", "1500"]
    assert cells(text, "SelfAug, alpha 0.5")[-3] == "3.00"
    assert cells(text, "SA-SFT")[-2] == "296", "what the dialogues took is part of the price"
    assert cells(text, "LoRA, adapter times 0.5")[-3:] == ["of LoRA", "96", "of LoRA"]
    assert cells(text, "base")[1:3] == ["-", "0.00"]
    assert (cells(text, "base")[5], cells(text, "base")[7]) == ("0.000", "0.000")
    assert "HumanEval" not in text


def test_humaneval_has_a_column_where_it_was_measured(found):
    for one in found:
        one["code"] = {"passed": [0, 0, 1, 0] if one["arm"] == "lora" else [1, 0, 1, 0], "length": [3, 4, 90, 5]}
    whole = summary.summarise(found)
    assert "| F1 | without answer | HumanEval | KL |" in tables.figures(whole)
    assert cells(tables.figures(whole), "LoRA")[5].startswith("0.250 ± 0.2")
    assert cells(tables.differences(whole, "lora"), "SelfAug, alpha 0.5")[2].startswith("+0.250 [+0.0")


def test_figures_of_the_task_have_intervals_over_the_clusters_of_its_questions(found):
    alone = summary.summarise(found)["arms"]["lora"]
    for one in found:
        one["task"]["cluster"] = [0, 0, 1, 1, 1]
    together = summary.summarise(found)["arms"]
    assert together["lora"]["estimates"]["exact_match"] != alone["estimates"]["exact_match"]
    assert together["lora"]["estimates"]["exact_match"]["mean"] == alone["estimates"]["exact_match"]["mean"]
    assert together["lora"]["estimates"]["kl"] == alone["estimates"]["kl"]
    assert together["lora"]["estimates"]["unanswerable"]["mean"] == 1
    bounds = [together["sasft"]["differences"]["selfaug-0.5"]["exact_match"][name] for name in ("low", "high")]
    assert bounds == pytest.approx([-1 / 3, 0], abs=1e-5), "all that differs is in one of the two clusters"


def test_a_difference_is_taken_on_the_seeds_that_both_have(found):
    whole = summary.summarise(found)
    difference = whole["arms"]["sasft"]["differences"]["lora"]["kl"]
    assert difference["by_seed"] == [-0.1]
    assert whole["arms"]["lora"]["differences"]["lora"] == {}
    assert whole["arms"]["selfaug-0.5"]["differences"]["lora"]["kl"]["by_seed"] == [-0.3, -0.4, -0.5]
    row = cells(tables.differences(whole, "lora"), "SelfAug, alpha 0.5")
    assert row[1] == "+0.20 [+0.00, +0.60]"
    assert row[2].startswith("-0.400 [-0.5")
    assert row[-1] == "3 of 3 seeds"
    of_default = whole["arms"]["sasft"]["differences"]["selfaug-0.5"]
    assert (of_default["kl"]["by_seed"], of_default["exact_match"]["by_seed"]) == ([0.2], [-0.2])
    assert "| SelfAug, alpha 0.5 |" not in tables.differences(whole, "selfaug-0.5")


def test_an_arm_has_its_differences_to_the_same_training_without_selfaug(found, record):
    assert "the same training" not in tables.block(summary.summarise(found), "results"), "plain LoRA has a table"
    longer = [record("context-1k", 0, kl=0.9), record("selfaug-context-1k", 0, kl=0.4), record("context-2k", 0, kl=1.0)]
    whole = summary.summarise([*found, *longer])
    text = tables.block(whole, "results").partition("**Differences to the same training without SelfAug**")[2]
    assert cells(text, "SelfAug 0.5, context of 1K")[2].startswith("-0.500 [")
    assert len(tables.differences(whole, "same").splitlines()) == 3, "a heading, and one row"


def test_the_differences_to_an_arm_that_was_not_run_are_left_out(found):
    whole = summary.summarise([one for one in found if one["arm"] != "lora"])
    assert "lora" not in whole["arms"]
    assert len(tables.differences(whole, "lora").splitlines()) == 2
    assert cells(tables.figures(whole), "SelfAug, alpha 0.5")[1] == "3"


def test_the_base_model_has_no_shift_at_the_input_however_many_were_measured(found):
    arms = summary.summarise(found)["arms"]
    assert arms["base"]["estimates"]["input_kl"]["mean"] == 0
    assert arms["base"]["differences"]["lora"]["input_kl"]["mean"] == pytest.approx(-0.3)


def test_questions_with_and_without_an_answer_are_scored_apart(found):
    estimates = summary.summarise(found)["arms"]["lora"]["estimates"]
    assert (estimates["answerable"]["mean"], estimates["unanswerable"]["mean"]) == (0.5, 1.0)


def test_the_text_says_which_rows_have_fewer_seeds_and_how_many_were_run(found):
    text = tables.extent(summary.summarise(found))
    assert text.startswith(f"8 runs: 4 of {len(experiments.ARMS)} arms, with up to 3 seeds")
    assert "Fewer seeds: SA-SFT (1); LoRA, adapter times 0.5 (1)." in text


def test_the_text_names_every_version_with_which_a_run_was_made(found):
    found[2]["versions"] = {"torch": "2.14.0"}
    assert "(torch 2.13.0, 2.14.0)" in tables.extent(summary.summarise(found))


@pytest.fixture
def results(tmp_path, found):
    folder = tmp_path / "results"
    for one in found:
        name = one["arm"] if one["seed"] is None else f"{one['arm']}-{one['seed']}"
        records.write(folder / "runs" / f"{name}.json", one)
    return folder


def test_the_report_rewrites_its_block_and_leaves_the_page(results):
    pytest.importorskip("matplotlib")
    page = results.with_suffix(".md")
    page.write_text(f"# Ours\n\n{tables.BEGIN}\nold\n{tables.END}\n\nThe end.\n", encoding="utf-8")
    STUDY["report"](results)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Ours\n")
    assert text.endswith("\n\nThe end.\n")
    assert "old" not in text
    assert "| LoRA | 3 |" in text
    assert json.loads((results / "study.json").read_text(encoding="utf-8"))["arms"]["lora"]["seeds"] == [0, 1, 2]
    assert (results / "study.png").read_bytes().startswith(b"\x89PNG")

    first = {file.name: file.read_bytes() for file in results.glob("study.*")}
    STUDY["report"](results)
    assert page.read_text(encoding="utf-8") == text
    assert {file.name: file.read_bytes() for file in results.glob("study.*")} == first


def test_the_page_of_another_folder_is_beside_it_and_links_into_it(results):
    pytest.importorskip("matplotlib")
    folder = results.rename(results.with_name("out.v2"))
    STUDY["report"](folder)
    text = (folder.parent / "out.v2.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 3
    assert all((folder.parent / link).exists() for link in links)


@pytest.mark.parametrize("page", [tables.BEGIN, f"{tables.END} {tables.BEGIN}", f"{tables.BEGIN * 2}{tables.END}"])
def test_a_page_without_a_place_for_the_block_is_left_alone(tmp_path, page):
    file = tmp_path / "results.md"
    file.write_text(page, encoding="utf-8")
    with pytest.raises(StepFailed, match="once each"):
        tables.write(file, "text")
    assert file.read_text(encoding="utf-8") == page


def test_a_report_without_records_says_what_to_do(tmp_path):
    with pytest.raises(StepFailed, match="run the study first"):
        STUDY["report"](tmp_path / "results")
