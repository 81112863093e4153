"""The demo's tables and verdict, from the figures that the retention tool has measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PLAIN, ALIGNED, DIALOGUES, BOTH = "lora", "selfaug", "sa-sft", "sa-sft-selfaug"
TITLES = {"base": "base", PLAIN: "LoRA", ALIGNED: "LoRA + SelfAug"}
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
    ("spent", None),
    ("seconds per training step", "seconds_per_step"),
)
BESIDE = {DIALOGUES: "SA-SFT", BOTH: "SA-SFT + SelfAug"}
ALONE = {"perplexity": "mean", "answer_length": "median"}  # rows without an error and a difference


def summarise(retention: dict[str, Any], training: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The content of ``results.json``: the figures of ``retention.json``, and the cost of each training.

    Args:
        retention: the content of ``retention.json``.
        training: ``seconds_per_step`` and ``steps`` of each adapter.
    """
    models = {name: {**figures, **training.get(name, {})} for name, figures in retention["models"].items()}
    drift = retention["differences"][ALIGNED]["kl"]
    plain = models[PLAIN]["kl"]["mean"]
    return {
        "questions": retention["settings"]["task"]["count"],
        "instructions": retention["settings"]["general"]["count"],
        "models": models,
        "differences": retention["differences"][ALIGNED],
        "kl_change": drift["mean"] / plain if plain else 0.0,
        "kl_lower_on": drift["lower"],
        "dialogue_differences": {name: figures for name, figures in retention["differences"].items() if name in BESIDE},
    }


def table(summary: dict[str, Any]) -> str:
    """The summary as text, at most 110 columns wide."""
    headings = {
        "learned": f"learned: {summary['questions']} questions about entities not in training",
        "kept": f"kept: {summary['instructions']} general instructions, none in training",
        "spent": "spent",
    }
    lines = [columns("", [*TITLES.values(), "difference [95 % interval]"])]
    for title, key in ROWS:
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
