from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
from report import dialogue_table, summarise, table, verdict


def figure(mean, se=0.1):
    return {"mean": mean, "se": se}


def model(score, nll, length, **drift):
    scores = {key: figure(score) for key in ("exact_match", "contains", "f1", "answerable", "unanswerable")}
    return {**scores, "perplexity": figure(nll), "answer_length": {**figure(length + 3.25), "median": length}, **drift}


def difference(mean, low, high, lower=1):
    return {"mean": mean, "low": low, "high": high, "se": 0.289, "lower": lower, "items": 2}


RETENTION = {
    "settings": {"task": {"count": 4}, "general": {"count": 2}},
    "models": {
        "base": model(0.0, 1.65, 93),
        "lora": model(0.75, 2.41, 5, kl=figure(0.3), top1=figure(0.75, 0)),
        "selfaug": model(0.7, 1.82, 15, kl=figure(0.15, 0.05), top1=figure(0.75, 0)),
    },
    "differences": {
        "selfaug": {
            "kl": difference(-0.15, -0.3, 0.0),
            "exact_match": difference(-0.05, -0.2, 0.1),
            "perplexity": {"mean": -0.6, "low": -0.7, "high": -0.5},
            "answer_length": difference(10, 9, 11),
        }
    },
}
TRAINING = {"lora": {"steps": 3, "seconds_per_step": 4.0}, "selfaug": {"steps": 3, "seconds_per_step": 6.0}}
TABLE = """\
                                    base              LoRA    LoRA + SelfAug   difference [95 % interval]
learned: 4 questions about entities not in training
  exact match                0.00 ± 0.10       0.75 ± 0.10       0.70 ± 0.10      -0.050 [-0.200, +0.100]
  answer contained           0.00 ± 0.10       0.75 ± 0.10       0.70 ± 0.10
  answerable questions       0.00 ± 0.10       0.75 ± 0.10       0.70 ± 0.10
  “I don't know” where due   0.00 ± 0.10       0.75 ± 0.10       0.70 ± 0.10
kept: 2 general instructions, none in training
  KL to the base, nats/token                0.300 ± 0.100     0.150 ± 0.050      -0.150 [-0.300, +0.000]
  top-1 agreement with base                         0.750             0.750
  perplexity of base's answers      1.65              2.41              1.82
  median answer, tokens               93                 5                15
spent
  seconds per training step                           4.00              6.00"""


@pytest.fixture
def summary():
    return summarise(RETENTION, TRAINING)


def test_the_table_fits_a_terminal_and_has_a_column_per_model(summary):
    lines = table(summary).splitlines()
    assert max(map(len, lines)) <= 110
    assert [line.split() for line in lines] == [line.split() for line in TABLE.splitlines()]
    heading = lines[0]
    kl = next(line for line in lines if "KL to the base" in line)
    assert [kl.rindex(text) + len(text) for text in ("0.100", "0.050", "0.000]")] == [
        heading.index("LoRA") + 4, heading.rindex("SelfAug") + 7, len(heading)
    ]  # fmt: skip


def test_what_the_trainings_took_is_beside_the_figures(summary):
    assert summary["models"]["lora"]["steps"] == 3
    assert summary["kl_change"] == pytest.approx(-0.5)
    assert json.loads(json.dumps(summary))["kl_lower_on"] == 1


def test_rows_of_sa_sft_stand_below_with_their_difference_to_lora(summary):
    assert dialogue_table(summary) == ""
    retention, training = copy.deepcopy(RETENTION), {**TRAINING, "sa-sft": {"steps": 4, "seconds_per_step": 5.0}}
    retention["models"]["sa-sft"] = model(0.5, 1.5, 40, kl=figure(0.2))
    retention["differences"]["sa-sft"] = {"kl": difference(-0.1, -0.2, 0.05), "exact_match": difference(-0.25, -0.5, 0)}
    heading, figures, minus = dialogue_table(summarise(retention, training)).splitlines()[:3]
    assert heading.split() == ["exact", "match", "KL,", "nats/token", "median", "answer", "s/step"]
    assert figures.split() == "SA-SFT 0.50 ± 0.10 0.200 ± 0.100 40 5.00".split()
    assert minus.split() == "minus LoRA -0.250 [-0.500, +0.000] -0.100 [-0.200, +0.050]".split()
    assert heading.index("exact match") + 11 == minus.index("]") + 1


def test_the_verdict_claims_less_drift_only_if_the_interval_excludes_zero(summary):
    assert "no difference that this test resolves, lower on 1 of 2" in verdict(summary)
    retention = copy.deepcopy(RETENTION)
    retention["differences"]["selfaug"]["kl"] = difference(-0.225, -0.3, -0.1, lower=2)
    assert "Drift: -75% with SelfAug, lower on 2 of 2" in verdict(summarise(retention, TRAINING))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((-0.05, -0.2, 0.1), "exact match, no difference that this test resolves (-0.050 [-0.200, +0.100])."),
        ((0.2, 0.0, 0.4), "exact match, no difference that this test resolves (+0.200 [+0.000, +0.400])."),
        ((-0.05, -0.09, -0.01), "exact match is worse with SelfAug, -0.050 [-0.090, -0.010]."),
        ((0.5, 0.1, 0.9), "exact match is better with SelfAug, +0.500 [+0.100, +0.900]."),
    ],
)
def test_the_verdict_on_the_task_goes_by_the_interval_as_that_on_the_drift_does(found, said):
    retention = copy.deepcopy(RETENTION)
    retention["differences"]["selfaug"]["exact_match"] = difference(*found)
    assert f"Task: {said}\n" in verdict(summarise(retention, TRAINING))


def test_the_page_ends_its_table_with_the_verdict_on_these_figures():
    text = Path(__file__).resolve().parents[2].joinpath("docs/demo.md").read_text(encoding="utf-8")
    block = text[text.index("<!-- demo table -->") : text.index("<!-- end of demo table -->")]
    line = next(line for line in block.splitlines() if line.startswith("  exact match"))
    retention = copy.deepcopy(RETENTION)
    shown = re.search(r"(\S+) \[(\S+), (\S+)\]$", line).groups()
    retention["differences"]["selfaug"]["exact_match"] = difference(*map(float, shown))
    assert verdict(summarise(retention, TRAINING)).splitlines()[1:] == block.splitlines()[-3:-1]
