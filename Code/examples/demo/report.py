"""From the figures of single items to the summary, the table and the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

from bootstrap import Interval, mean_interval, paired_difference, standard_error
from scores import contains, exact_match

PLAIN, ALIGNED = "lora", "selfaug"
TITLES = {"base": "base", PLAIN: "LoRA", ALIGNED: "LoRA + SelfAug"}


def summarise(figures: dict, training: dict[str, dict]) -> dict:
    """All that the table and ``results.json`` say: per model means with standard errors, and the paired differences.

    Args:
        figures: what measure.py wrote.
        training: per adapter, ``seconds_per_step`` and ``steps``.
    """
    task, models = figures["task"], figures["models"]
    items = {name: task_items(task, model["task"]) for name, model in models.items()}
    for name, model in models.items():
        if "drift" in model:
            items[name].update({key: [row[key] for row in model["drift"]] for key in ("kl", "top1")})
    summary = {
        name: {
            **{key: estimate(values) for key, values in items[name].items()},
            **kept_figures(model, models),
            **training.get(name, {}),
        }
        for name, model in models.items()
    }
    differences = {key: difference(items[ALIGNED][key], items[PLAIN][key]) for key in items[PLAIN] if items[PLAIN][key]}
    plain, aligned = items[PLAIN]["kl"], items[ALIGNED]["kl"]
    return {
        "questions": len(task),
        "instructions": len(figures["instructions"]),
        "models": summary,
        "differences": differences,
        "kl_change": fmean(aligned) / fmean(plain) - 1 if fmean(plain) else 0.0,
        "kl_lower_on": sum(a < b for a, b in zip(aligned, plain)),
    }


def task_items(task: Sequence[dict], answers: Sequence[str]) -> dict[str, list[float]]:
    """0 or 1 per question, for each of the task's scores."""

    def score(right: Callable[[str, str], bool], answerable: bool | None = None) -> list[float]:
        pairs = zip(task, answers)
        return [float(right(a, q["answer"])) for q, a in pairs if answerable in (None, q["answerable"])]

    return {
        "exact_match": score(exact_match),
        "contains": score(contains),
        "answerable": score(exact_match, True),
        "unanswerable": score(exact_match, False),
    }


def kept_figures(model: dict, models: dict) -> dict[str, float]:
    """Perplexity of the base model's own answers, and the median length of this model's."""
    drift = model.get("drift") or models[PLAIN]["drift"]
    nll = "nll" if "drift" in model else "base_nll"
    total = sum(row[nll] * row["tokens"] for row in drift)
    return {
        "perplexity": math.exp(total / sum(row["tokens"] for row in drift)),
        "answer_length": median(model["lengths"]),
    }


def estimate(values: Sequence[float]) -> dict[str, float]:
    return {"mean": fmean(values), "se": standard_error(values)} if values else {}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    interval = paired_difference(ours, theirs)
    return {**interval._asdict(), "se": standard_error([a - b for a, b in zip(ours, theirs)])}


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


def table(summary: dict) -> str:
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
            lines.append(columns(f"  {title}", [*cells, difference_cell(summary["differences"].get(key))]))
    return "\n".join(lines)


def columns(first: str, others: Sequence[str]) -> str:
    widths = (8, 16, 16, 28)
    return (first.ljust(32) + "  ".join(text.rjust(width) for text, width in zip(others, widths))).rstrip()


def cell(value: dict | float | None, key: str) -> str:
    if value is None or value == {}:
        return ""
    if isinstance(value, dict):
        digits = 3 if key in ("kl", "top1") else 2
        return f"{value['mean']:.{digits}f}" + (f" ± {value['se']:.{digits}f}" if value["se"] else "")
    return f"{value:.0f}" if key == "answer_length" else f"{value:.2f}"


def difference_cell(value: dict | None) -> str:
    return "" if value is None else f"{value['mean']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def verdict(summary: dict) -> str:
    """What the figures show, and what they do not, in words."""
    drift = Interval(*(summary["differences"]["kl"][bound] for bound in ("mean", "low", "high")))
    task = summary["differences"]["exact_match"]
    if not drift.excludes_zero():
        kept = "Drift: no difference that this test resolves"
    else:
        kept = f"Drift: {summary['kl_change']:+.0%} with SelfAug"
    kept += f", lower on {summary['kl_lower_on']} of {summary['instructions']} instructions."
    error = task["se"]
    if task["mean"] >= -error:
        learned = f"Task: not worse (exact match {task['mean']:+.3f}, standard error {error:.3f})."
    else:
        learned = f"Task: exact match {task['mean']:+.3f}, which is more than its standard error {error:.3f}."
    return f"{kept}\n{learned}\nOne training seed: the intervals cover the choice of questions, not of seeds."


def mean_bars(figures: dict, key: str) -> dict[str, Interval]:
    """Per adapter, the mean of a drift figure with its 95 % interval, for the plot."""
    return {name: mean_interval([row[key] for row in figures["models"][name]["drift"]]) for name in (PLAIN, ALIGNED)}
