from __future__ import annotations

import copy
from math import exp

import pytest
from report import summarise, table, verdict

TASK = [
    {"answer": "oak", "answerable": True},
    {"answer": "1935", "answerable": True},
    {"answer": "I don't know", "answerable": False},
    {"answer": "Ana Brarth", "answerable": True},
]


def drift(kl, base_nll, nll, tokens):
    return {"kl": kl, "top1": 0.75, "base_nll": base_nll, "nll": nll, "tokens": tokens}


FIGURES = {
    "task": TASK,
    "instructions": ["Write a poem.", "Name a bird."],
    "models": {
        "base": {"task": ["It is oak.", "", "No.", "Ana"], "instructions": ["…", "…"], "lengths": [96, 90]},
        "lora": {
            "task": ["oak", "1936", "I don't know", "Ana Brarth"],
            "instructions": ["…", "…"],
            "lengths": [4, 6],
            "drift": [drift(0.4, 0.5, 1.0, 30), drift(0.2, 0.5, 0.5, 10)],
        },
        "selfaug": {
            "task": ["oak", "1935", "I don't know", "Ana"],
            "instructions": ["…", "…"],
            "lengths": [10, 20],
            "drift": [drift(0.1, 0.5, 0.6, 30), drift(0.2, 0.5, 0.6, 10)],
        },
    },
}
TRAINING = {"lora": {"steps": 3, "seconds_per_step": 4.0}, "selfaug": {"steps": 3, "seconds_per_step": 6.0}}


@pytest.fixture
def summary():
    return summarise(FIGURES, TRAINING)


def test_scores_are_counted_over_all_answerable_and_unanswerable_questions(summary):
    means = {
        name: [model[key]["mean"] for key in ("exact_match", "contains", "answerable", "unanswerable")]
        for name, model in summary["models"].items()
    }
    assert means == {
        "base": [0, 0.25, 0, 0],
        "lora": pytest.approx([0.75, 0.75, 2 / 3, 1]),
        "selfaug": pytest.approx([0.75, 0.75, 2 / 3, 1]),
    }


def test_perplexity_weighs_tokens_alike_and_the_bases_comes_from_the_same_answers(summary):
    models = summary["models"]
    assert models["base"]["perplexity"] == pytest.approx(exp(0.5))
    assert models["lora"]["perplexity"] == pytest.approx(exp((30 * 1.0 + 10 * 0.5) / 40))
    assert [model["answer_length"] for model in models.values()] == [93, 5, 15]


def test_differences_are_paired_and_signed_selfaug_minus_lora(summary):
    assert summary["differences"]["kl"]["mean"] == pytest.approx(-0.15)
    assert (summary["differences"]["kl"]["low"], summary["differences"]["kl"]["high"]) == pytest.approx((-0.3, 0))
    assert summary["differences"]["exact_match"]["mean"] == 0
    assert summary["kl_change"] == pytest.approx(-0.5)
    assert summary["kl_lower_on"] == 1


def test_the_table_fits_a_terminal_and_names_every_column(summary):
    lines = table(summary).splitlines()
    assert max(map(len, lines)) <= 110
    assert lines[0].split("  ") != []
    for title in ("base", "LoRA", "LoRA + SelfAug", "difference [95 % interval]"):
        assert title in lines[0]
    kl = next(line for line in lines if "KL to the base" in line)
    assert kl.split()[-7:] == "± 0.100 0.150 ± 0.050 -0.150 [-0.300, +0.000]".split()[-7:]


def test_the_verdict_claims_less_drift_only_if_the_interval_excludes_zero(summary):
    assert "no difference that this test resolves, lower on 1 of 2" in verdict(summary)
    figures = copy.deepcopy(FIGURES)
    figures["models"]["selfaug"]["drift"][1]["kl"] = 0.05
    assert "Drift: -75% with SelfAug, lower on 2 of 2" in verdict(summarise(figures, TRAINING))


def test_the_verdict_admits_a_task_score_that_fell_by_more_than_its_standard_error(summary):
    assert "Task: not worse" in verdict(summary)
    figures = copy.deepcopy(FIGURES)
    figures["models"]["selfaug"]["task"] = ["?", "?", "?", "Ana Brarth"]
    assert "Task: exact match -0.500, which is more than its standard error 0.289" in verdict(
        summarise(figures, TRAINING)
    )
