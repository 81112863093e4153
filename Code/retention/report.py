"""``retention.md``: the figures in Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..toolkit import tables
from .summary import KEPT, LEARNED, PROBED

TITLES = {
    "exact_match": "exact match",
    "contains": "contained",
    "f1": "token F1",
    "answerable": "answerable",
    "unanswerable": "unanswerable",
    "kl": "KL(base \\|\\| tuned)",
    "reverse_kl": "KL(tuned \\|\\| base)",
    "top1": "top-1 agreement",
    "perplexity": "perplexity",
    "input_kl": "KL, task input",
    "input_top1": "top-1, task input",
    "answer_length": "answer length",
    "ended": "ended",
    "lists": "with a list",
    "one_word": "one word",
    "tool_calls": "right call",
    "tool_json": "valid call",
    "tool_function": "right function",
    "system_language": "system: language",
    "system_persona": "system: persona",
    "system_format": "system: format",
    "thinking_on": "thinks when on",
    "thinking_off": "answers when off",
    "questions": "questions",
}
_DIGITS = {"kl": 3, "reverse_kl": 3, "top1": 3, "input_kl": 3, "input_top1": 3, "answer_length": 1}


def markdown(result: Mapping[str, Any]) -> str:
    """The whole page, from the content of ``retention.json``."""
    settings, models, differences = (result[name] for name in ("settings", "models", "differences"))
    parts = [f"# What was learned, what was kept: {settings['base']}"]
    sure = "± is a standard error"
    groups: list[tuple[str, str, Sequence[str], Any]] = [
        ("Learned", f"{settings['task']['count']} questions, greedy answers. {sure}.", LEARNED, _cell),
        ("Kept", f"{settings['general']['count']} general instructions; KL in nats per token. {sure}.", KEPT, _cell),
    ]
    probes = settings.get("probes")
    if probes:
        what = f"{probes['count']} probes; share passed. In brackets, the 95 % interval by Wilson."
        groups.append(("Probes", what, PROBED, _share))
    for title, what, metrics, cell in groups:
        shown = [metric for metric in metrics if any(metric in model for model in models.values())]
        if shown:
            parts += [f"## {title}", what, _table("model", models, shown, cell)]
            if differences:
                parts += [
                    f"Difference to {settings['compared_with']}, paired, with its 95 % bootstrap interval:",
                    _table("adapter", differences, shown, _difference),
                ]
    if probes:
        parts += [f"Left out: {name}: {reason}." for name, reason in probes["left_out"].items()]
    parts += _harness(models)
    return "\n\n".join(parts) + "\n"


def _harness(models: Mapping[str, Any]) -> list[str]:
    results = {name: model["lm_eval"] for name, model in models.items() if "lm_eval" in model}
    metrics = list(dict.fromkeys(metric for model in results.values() for metric in model))
    if not metrics:
        return []
    heads = {metric: metric.replace("|", "\\|") for metric in metrics}
    return ["## lm-evaluation-harness", _table("model", results, metrics, _cell, heads)]


def _table(
    corner: str, rows: Mapping[str, Any], metrics: Sequence[str], cell: Any, heads: Mapping[str, str] = TITLES
) -> str:
    lines = ([name, *(cell(row.get(metric), metric) for metric in metrics)] for name, row in rows.items())
    return tables.markdown([corner, *(heads[metric] for metric in metrics)], lines)


def _cell(value: Mapping[str, Any] | None, metric: str) -> str:
    if value is None:
        return ""
    digits = _DIGITS.get(metric, 2)
    error = value.get("se")
    text = f"{value['mean']:.{digits}f}" + (f" ± {error:.{digits}f}" if error is not None else "")
    return text + (f" (median {value['median']:.0f})" if "median" in value else "")


def _share(value: Mapping[str, Any] | None, metric: str) -> str:
    return "" if value is None else f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _difference(value: Mapping[str, Any] | None, metric: str) -> str:
    if value is None:
        return ""
    digits = _DIGITS.get(metric, 3)
    return f"{value['mean']:+.{digits}f} [{value['low']:+.{digits}f}, {value['high']:+.{digits}f}]"
