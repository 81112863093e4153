"""The files here are laid out as those that lm-evaluation-harness 0.4.13 wrote for the recipe of docs/retention.md."""

from __future__ import annotations

import json

import pytest

from selfaug.retention import harness_results, plots
from selfaug.toolkit.errors import Refusal

IFEVAL = {
    "name": "ifeval",
    "alias": "ifeval",
    "sample_len": 541,
    "prompt_level_strict_acc,none": 0.18,
    "prompt_level_strict_acc_stderr,none": 0.038,
    "inst_level_strict_acc,none": 0.27,
    "inst_level_strict_acc_stderr,none": "N/A",
}
GSM8K = {
    "alias": "gsm8k",
    "exact_match,strict-match": 0.05,
    "exact_match_stderr,strict-match": 0.01,
    "exact_match,flexible-extract": 0.07,
    "exact_match_stderr,flexible-extract": 0.012,
}


@pytest.fixture
def results(tmp_path):
    def write(name, better=None, **tasks):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"results": tasks, "configs": {}, "versions": {}, "n-shot": {}, "config": {"model": "hf"}}
        if better is not None:
            content["higher_is_better"] = better
        file.write_text(json.dumps(content), encoding="utf-8")
        return file

    return write


def test_metrics_have_their_errors_and_filters_are_named(results):
    assert harness_results.read(results("results_2026-01-02T03-04-05.json", ifeval=IFEVAL, gsm8k=GSM8K)) == {
        "ifeval/prompt_level_strict_acc": {"mean": 0.18, "se": 0.038},
        "ifeval/inst_level_strict_acc": {"mean": 0.27},
        "gsm8k/exact_match (strict-match)": {"mean": 0.05, "se": 0.01},
        "gsm8k/exact_match (flexible-extract)": {"mean": 0.07, "se": 0.012},
    }


def test_what_the_harness_says_is_better_is_read_where_it_says_it(results):
    file = results(
        "results_1.json",
        better={"wikitext": {"word_perplexity": False, "byte_perplexity": None}, "gsm8k": None},
        wikitext={"word_perplexity,none": 12.5, "word_perplexity_stderr,none": "N/A", "byte_perplexity,none": 2},
        gsm8k=GSM8K,
    )
    found = harness_results.read(file)
    assert found["wikitext/word_perplexity"] == {"mean": 12.5, "higher_is_better": False}
    assert [name for name, figure in found.items() if "higher_is_better" in figure] == ["wikitext/word_perplexity"]


@pytest.mark.parametrize(
    ("better", "forgotten", "label"),
    [
        pytest.param(False, 2.5, "rise of wikitext/perplexity", id="lower is better"),
        pytest.param(True, -2.5, "loss of wikitext/perplexity", id="higher is better"),
        pytest.param(None, 0.25, "top-1 tokens that changed", id="not said"),
    ],
)
def test_forgetting_is_how_much_worse_a_benchmark_is(better, forgotten, label):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    said = {} if better is None else {"higher_is_better": better}
    kept = {"input_kl": {"mean": 0.3, "se": 0.1}, "top1": {"mean": 0.75, "se": 0.1}}
    models = {
        "base": {"lm_eval": {"wikitext/perplexity": {"mean": 10.0, **said}}},
        "far": {**kept, "lm_eval": {"wikitext/perplexity": {"mean": 12.5, **said}}},
    }
    axes = figure.add_subplot()
    assert plots.shift_against_forgetting(axes, {"far": "red"}, models, {}, {})
    assert axes.get_ylabel() == f"forgetting: {label}"
    assert axes.containers[0].lines[0].get_ydata()[0] == pytest.approx(forgotten)


def test_in_a_folder_the_latest_result_of_each_task_counts(results, tmp_path):
    results("z/results_2026-01-01T00-00-00.json", ifeval={"prompt_level_strict_acc,none": 0.1}, gsm8k=GSM8K)
    results("a/results_2026-01-02T00-00-00.json", ifeval=IFEVAL)
    found = harness_results.read(tmp_path)
    assert found["ifeval/prompt_level_strict_acc"]["mean"] == 0.18
    assert "gsm8k/exact_match (strict-match)" in found


@pytest.mark.parametrize("text", ["{", "[]", '{"results": 3}', '{"results": {"ifeval": 3}}', "{}"])
def test_other_files_are_refused(tmp_path, text):
    file = tmp_path / "results.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(Refusal, match="is no result file of lm-evaluation-harness"):
        harness_results.read(file)


def test_no_file_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(Refusal, match="no such file"):
        harness_results.read(tmp_path / "results.json")
    with pytest.raises(Refusal, match="a folder without one"):
        harness_results.read(tmp_path)


def test_the_figures_are_in_the_table_of_the_command(results, measured, adapters, result, files):
    base = results("base/results_1.json", ifeval=IFEVAL)
    far = results("far/results_1.json", ifeval={**IFEVAL, "prompt_level_strict_acc,none": 0.11}).parent
    measured("--adapter", f"far={adapters['far']}", "--lm-eval", f"base={base}", "--lm-eval", f"far={far}")
    assert result()["models"]["far"]["lm_eval"]["ifeval/prompt_level_strict_acc"] == {"mean": 0.11, "se": 0.038}
    page = (files / "out" / "retention.md").read_text(encoding="utf-8")
    assert "| far | 0.11 ± 0.04 | 0.27 |" in page
