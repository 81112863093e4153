"""IFEval's samples become a table of paired differences; the page's table is the one that the kept answers give."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import ifeval
import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = {"a": [True, True], "b": [True, False, False], "c": [True]}
TUNED = {"a": [True, False], "b": [False, False, True], "c": [False]}


@pytest.fixture
def results(tmp_path):
    """Writes samples as the harness does: a folder for the model, the time in the name, more than is needed."""

    def write(name, answers, time="2026-01-01T00-00-00", task="ifeval"):
        folder = tmp_path / name / "some__model"
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"samples_{task}_{time}.jsonl"
        rows = [{"doc_id": 0, "prompt_hash": key, "inst_level_strict_acc": value} for key, value in answers.items()]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ifeval.py", *map(str, arguments)])
        monkeypatch.chdir(tmp_path)
        ifeval.main()
        return capsys.readouterr().out

    return run


def test_the_table_has_the_shares_and_the_paired_differences(results, run):
    results("base", BASE)
    results("tuned", dict(reversed(TUNED.items())))  # the order of the prompts does not matter
    text = run("base=base", "tuned=tuned")
    assert text.startswith("3 prompts, 6 instructions\n")
    base, tuned = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[-2:])
    assert (base[1][:5], base[2][:5], base[3:]) == ("0.667", "0.667", ["-", "-"])
    assert (tuned[1][:5], tuned[2][:5]) == ("0.000", "0.333")
    assert [cell.split()[0] for cell in tuned[3:]] == ["-0.667", "-0.333"]


def test_the_interval_of_instructions_draws_prompts(results, run):
    """One prompt has all instructions, so nothing varies; the draw of instructions would have a width."""
    results("base", {"a": [True, True, False, False]})
    results("tuned", {"a": [True, False, False, False]})
    assert run("base=base", "tuned=tuned").splitlines()[-1].endswith("-0.250 [-0.250, -0.250] |")


def test_what_is_kept_gives_the_same_table(results, run, tmp_path):
    for name, answers in (("base", BASE), ("tuned", TUNED)):
        results(name, answers)
    text = run("base=base", "tuned=tuned", "--keep", "kept", "--to", "tuned")
    assert run("base=kept/base.jsonl", "tuned=kept/tuned.jsonl", "--to", "tuned") == text
    assert "doc_id" not in (tmp_path / "kept" / "base.jsonl").read_text(encoding="utf-8")


def test_the_latest_samples_of_ifeval_count(results, run):
    results("base", TUNED)
    results("base", BASE, time="2026-01-02T00-00-00")
    results("base", {"x": [True]}, time="2026-01-03T00-00-00", task="gsm8k")
    assert "| base | 0.667" in run("base=base")


def test_models_that_answered_other_prompts_are_refused(results, run):
    results("base", BASE)
    results("tuned", {**TUNED, "d": [True]})
    with pytest.raises(SystemExit, match="base and tuned did not answer the same prompts") as refused:
        run("base=base", "tuned=tuned", "--keep", "kept")
    assert "3 and 4 prompts, of which 3 are shared" in str(refused.value)
    assert not Path("kept").exists()


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"prompt_hash": "a", "inst_level_strict_acc": []}', "[" * 100_000,
     '{"prompt_hash": "a", "inst_level_strict_acc": [1]}', '{"prompt_hash": 1, "inst_level_strict_acc": [true]}'],
    ids=lambda line: line[:60],
)  # fmt: skip
def test_a_line_that_is_no_sample_is_refused_with_file_and_line(results, run, line):
    file = results("base", BASE)
    with file.open("a", encoding="utf-8") as samples:
        samples.write(line + "\n")
    with pytest.raises(SystemExit, match=f"{file.name}:4 is not a sample of IFEval"):
        run("base=base")


def test_a_prompt_that_is_there_twice_is_refused(results, run):
    file = results("base", BASE)
    file.write_text(file.read_text() * 2)
    with pytest.raises(SystemExit, match=":4: this prompt was there before"):
        run("base=base")


@pytest.mark.parametrize(("path", "said"), [("none", "there is no file"), ("empty", "has no samples")])
def test_a_path_without_samples_is_refused(run, tmp_path, path, said):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match=said):
        run(f"base={path}")


@pytest.mark.parametrize(
    "arguments", [["base"], ["=x"], ["base="], ["a/b=x"], ["a=x", "a=y"], ["base=x", "--to", "other"]], ids=" ".join
)
def test_a_wrong_option_is_a_usage_error(run, arguments):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
