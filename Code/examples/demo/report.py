"""The demo's tables and verdict, from the figures that the retention tool has measured."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from random import Random
from statistics import fmean, median
from typing import Any

BASE, PLAIN, ALIGNED, DIALOGUES, BOTH = "base", "lora", "selfaug", "sa-sft", "sa-sft-selfaug"
TITLES = {BASE: "base", PLAIN: "LoRA", ALIGNED: "LoRA + SelfAug"}
CODE = (("code", None), ("pass@1", "code"), ("median answer, tokens", "code_length"))
ROWS = (
    ("learned", None),
    ("exact match", "exact_match"),
    ("answer contained", "contains"),
    ("answerable questions", "answerable"),
    ("“I don't know” where due", "unanswerable"),
    ("kept", None),
    ("KL to the base, nats/token", "kl"),
    ("top-1 agreement with base", "top1"),
    ("perplexity of base's answers", "perplexity"),
    ("median answer, tokens", "answer_length"),
    *CODE,
    ("spent", None),
    ("seconds per training step", "seconds_per_step"),
)
BESIDE = {DIALOGUES: "SA-SFT", BOTH: "SA-SFT + SelfAug"}
ALONE = {"perplexity": "mean", "answer_length": "median", "code_length": "median"}  # without error and difference
RESAMPLES = 10_000


def summarise(
    retention: dict[str, Any], training: dict[str, dict[str, Any]], code: dict[str, list[dict[str, Any]]] | None = None
) -> dict[str, Any]:
    """The content of ``results.json``: the figures of ``retention.json``, the cost of each training, and HumanEval.

    Args:
        retention: the content of ``retention.json``.
        training: ``seconds_per_step`` and ``steps`` of each adapter.
        code: for each model, the rows of ``humaneval.py``, in the order of the problems. Empty: not measured.
    """
    written = {name: code_figures(rows) for name, rows in (code or {}).items()}
    models = {
        name: {**figures, **training.get(name, {}), **written.get(name, {})}
        for name, figures in retention["models"].items()
    }
    differences = dict(retention["differences"][ALIGNED])
    if code:
        pairs = zip(code[ALIGNED], code[PLAIN])
        differences["code"] = interval([ours["passed"] - theirs["passed"] for ours, theirs in pairs])
    drift = retention["differences"][ALIGNED]["kl"]
    plain = models[PLAIN]["kl"]["mean"]
    return {
        "questions": retention["settings"]["task"]["count"],
        "instructions": retention["settings"]["general"]["count"],
        "problems": len(code[PLAIN]) if code else 0,
        "models": models,
        "differences": differences,
        "kl_change": drift["mean"] / plain if plain else 0.0,
        "kl_lower_on": drift["lower"],
        "dialogue_differences": {name: figures for name, figures in retention["differences"].items() if name in BESIDE},
    }


def code_figures(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """pass@1 with its standard error, and the median length of an answer."""
    share, count = fmean(row["passed"] for row in rows), len(rows)
    error = sqrt(share * (1 - share) / max(1, count - 1))
    return {"code": {"mean": share, "se": error}, "code_length": {"median": median(row["length"] for row in rows)}}


def interval(differences: Sequence[float]) -> dict[str, float]:
    """The mean of paired differences and its 95 % bootstrap interval, without numpy, which this Python may not have."""
    rng = Random(0)
    means = sorted(sum(rng.choices(differences, k=len(differences))) for _ in range(RESAMPLES))
    low, high = (means[round(share * (RESAMPLES - 1))] / len(differences) for share in (0.025, 0.975))
    return {"mean": fmean(differences), "low": low, "high": high}


def table(summary: dict[str, Any]) -> str:
    """The summary as text, at most 110 columns wide."""
    headings = {
        "learned": f"learned: {summary['questions']} questions about entities not in training",
        "kept": f"kept: {summary['instructions']} general instructions, none in training",
        "code": f"kept: {summary['problems']} problems of HumanEval",
        "spent": "spent",
    }
    rows = [row for row in ROWS if summary["problems"] or row not in CODE]
    lines = [columns("", [*TITLES.values(), "difference [95 % interval]"])]
    for title, key in rows:
        if key is None:
            lines.append(headings[title])
        else:
            cells = [cell(summary["models"].get(name, {}).get(key), key) for name in TITLES]
            difference = None if key in ALONE else summary["differences"].get(key)
            lines.append(columns(f"  {title}", [*cells, difference_cell(difference)]))
    return "\n".join(lines)


def dialogue_table(summary: dict[str, Any]) -> str:
    """The rows of SA-SFT, each with its difference to LoRA. Empty if SA-SFT was not trained."""
    if not summary["dialogue_differences"]:
        return ""
    titles = {"exact_match": "exact match", "kl": "KL, nats/token", "answer_length": "median answer"}
    titles["seconds_per_step"] = "s/step"
    rows = [["", *titles.values()]]
    for name, differences in summary["dialogue_differences"].items():
        rows.append([BESIDE[name], *(cell(summary["models"][name].get(key), key) for key in titles)])
        rows.append(["  minus LoRA", *(difference_cell(differences[key]) for key in ("exact_match", "kl"))])
    lines = (row[0].ljust(20) + "".join(map(str.rjust, row[1:], (25, 25, 15, 10))) for row in rows)
    return "\n".join(lines) + "\n\n"


def columns(first: str, others: Sequence[str]) -> str:
    widths = (8, 16, 16, 28)
    return (first.ljust(32) + "  ".join(text.rjust(width) for text, width in zip(others, widths))).rstrip()


def cell(value: dict[str, Any] | float | None, key: str) -> str:
    if value is None:
        return ""
    if isinstance(value, dict) and key not in ALONE:
        digits = 3 if key in ("kl", "top1") else 2
        return f"{value['mean']:.{digits}f}" + (f" ± {value['se']:.{digits}f}" if value["se"] else "")
    number = value[ALONE[key]] if isinstance(value, dict) else value
    return f"{number:.0f}" if key == "answer_length" else f"{number:.2f}"


def difference_cell(value: dict[str, Any] | None) -> str:
    return "" if value is None else f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def verdict(summary: dict[str, Any]) -> str:
    """What the figures show and do not show, in words."""
    drift, task = summary["differences"]["kl"], summary["differences"]["exact_match"]
    if drift["low"] <= 0 <= drift["high"]:
        kept = "Drift: no difference that this test resolves"
    else:
        kept = f"Drift: {summary['kl_change']:+.0%} with SelfAug"
    kept += f", lower on {summary['kl_lower_on']} of {summary['instructions']} instructions."
    if task["low"] <= 0 <= task["high"]:
        learned = f"Task: exact match, no difference that this test resolves ({difference_cell(task)})."
    else:
        better = "better" if task["low"] > 0 else "worse"
        learned = f"Task: exact match is {better} with SelfAug, {difference_cell(task)}."
    return f"{kept}\n{learned}\nOne training seed: the intervals cover the choice of questions, not of seeds."
