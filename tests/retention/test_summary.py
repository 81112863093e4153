from __future__ import annotations

from math import exp

import pytest

from selfaug.retention import report, summary
from selfaug.retention.items import Items
from selfaug.retention.prompts import Prompt

TASK = [Prompt("?", ("oak",), True), Prompt("?", ("1935",), True), Prompt("?", ("I don't know",), False)]


@pytest.fixture
def models(tmp_path):
    def model(name, kl, nll, lengths, right, list_=False):
        items = Items(tmp_path / f"{name}.json")
        items.rows["general"] = [
            {
                "kl": k, "reverse_kl": 2 * k, "top1": 1 - k, "base_nll": 0.5, "nll": n, "tokens": t, "length": length,
                "ended": length < 96, "list": list_, "one_word": length == 1,
            }
            for k, n, t, length in zip(kl, nll, (30, 10), lengths)
        ]  # fmt: skip
        items.rows["task"] = [
            {"exact_match": e, "contains": 1.0, "f1": (1 + e) / 2, "input_kl": 0.1, "input_top1": 0.9} for e in right
        ]
        return items

    return {
        "base": model("base", (0.0, 0.0), (0.5, 0.5), (96, 90), (0.0, 0.0, 0.0), list_=True),
        "lora": model("lora", (0.4, 0.2), (1.0, 0.5), (1, 6), (1.0, 0.0, 1.0)),
        "selfaug": model("selfaug", (0.1, 0.25), (0.6, 0.6), (10, 20), (1.0, 1.0, 0.0)),
    }


@pytest.fixture
def found(models):
    return summary.summarise(models, TASK)


def means(found, metric):
    return [model[metric]["mean"] for model in found["models"].values() if metric in model]


def test_scores_are_counted_over_all_answerable_and_unanswerable_questions(found):
    assert means(found, "exact_match") == pytest.approx([0, 2 / 3, 2 / 3])
    assert means(found, "answerable") == pytest.approx([0, 0.5, 1])
    assert means(found, "unanswerable") == [0, 1, 0]


def test_the_base_has_no_drift_but_has_a_form(found):
    assert "kl" not in found["models"]["base"]
    assert means(found, "kl") == pytest.approx([0.3, 0.175])
    assert means(found, "ended") == [0.5, 1, 1]
    assert means(found, "lists") == [1, 0, 0]
    assert means(found, "one_word") == [0, 0.5, 0]
    assert found["models"]["base"]["answer_length"]["median"] == 93


def test_perplexity_weighs_tokens_alike(found):
    assert means(found, "perplexity") == pytest.approx([exp(0.5), exp((30 * 1.0 + 10 * 0.5) / 40), exp(0.6)])
    difference = found["differences"]["selfaug"]["perplexity"]
    assert difference["mean"] == pytest.approx(exp(0.6) - exp(0.875))
    assert difference["low"] == pytest.approx(exp(0.6) - exp(1.0))
    assert difference["high"] == pytest.approx(exp(0.6) - exp(0.5))


def test_differences_are_paired_and_signed_later_minus_first(found):
    assert list(found["differences"]) == ["selfaug"]
    kl = found["differences"]["selfaug"]["kl"]
    assert (kl["mean"], kl["low"], kl["high"]) == pytest.approx((-0.125, -0.3, 0.05))
    assert (kl["lower"], kl["items"]) == (1, 2)
    assert set(found["differences"]["selfaug"]) == set(found["models"]["selfaug"])


def test_questions_that_do_not_say_whether_they_can_be_answered_are_in_neither_score(models):
    found = summary.summarise(models, [Prompt("?", ("oak",)) for _ in TASK])
    assert not {"answerable", "unanswerable"} & set(found["models"]["lora"])
    assert "exact_match" in found["models"]["lora"]


def test_the_page_has_every_figure_with_its_error_and_every_difference_with_its_interval(found):
    settings = {"base": "tiny", "compared_with": "lora", "general": {"count": 2}, "task": {"count": 3}}
    page = report.markdown({"settings": settings, **found})
    rows = {line.split(" | ")[0].strip("| "): line for line in page.split("## Kept")[1].splitlines() if "|" in line}
    assert "| 0.300 ± 0.100 | 0.600 ± 0.200 |" in page
    assert "-0.125 [-0.300, +0.050]" in rows["selfaug"]
    assert "3.5 ± 2.5 (median 4)" in page
    assert set(report.TITLES) == {*summary.LEARNED, *summary.KEPT, *summary.PROBED}
