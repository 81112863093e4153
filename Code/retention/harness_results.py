"""Reads result files of lm-evaluation-harness (IFEval, MMLU, GSM8K, …), so that its figures stand in the same table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from ..toolkit.files import read_json

_PATTERN = "results*.json"
_EXPECTED = "what lm_eval --output_path wrote (results_*.json)"


def read(path: Path) -> dict[str, dict[str, float]]:
    """``{"task/metric": {"mean", "se", "higher_is_better"}}`` of a result file, or of all result files below a folder.

    If several files have a task, the file with the latest name counts, since names end in the time. ``se`` and
    ``higher_is_better`` are missing where the harness does not give them.

    Raises:
        Refusal: there is no result file, or a file does not hold results.
    """
    files = sorted(path.rglob(_PATTERN), key=lambda file: file.name) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        reason = "a folder without one" if path.is_dir() else "no such file"
        raise Refusal("no-results", f"{path} has no results of lm-evaluation-harness", _EXPECTED, reason)
    tasks: dict[str, dict[str, dict[str, float]]] = {}
    for file in files:
        results, better = _results(file)
        for task, values in results.items():
            of_task = better.get(task)
            tasks[task] = _metrics(task, values, of_task if isinstance(of_task, dict) else {})
    return {name: figures for metrics in tasks.values() for name, figures in metrics.items()}


def _results(file: Path) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Any]]:
    """(figures by task, which metrics are better when higher). The second is empty where the harness does not say."""
    try:
        content = read_json(file)
        results, better = content["results"], content.get("higher_is_better")
    except (OSError, KeyError, TypeError, AttributeError) as error:
        what = f"{file} is no result file of lm-evaluation-harness"
        raise Refusal("no-results", what, _EXPECTED, f"{type(error).__name__}: {error}") from None
    except Refusal as refusal:
        what, reason = f"{file} is no result file of lm-evaluation-harness", refusal.found or refusal.what
        raise Refusal("no-results", what, _EXPECTED, reason) from None
    if not isinstance(results, dict) or not all(isinstance(values, dict) for values in results.values()):
        raise Refusal("no-results", f"{file} is no result file of lm-evaluation-harness", _EXPECTED)
    return results, better if isinstance(better, dict) else {}


def _metrics(task: str, values: Mapping[str, Any], better: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The figures of a task. The harness calls a figure ``metric,filter`` and its error ``metric_stderr,filter``."""
    figures = {}
    for name, value in values.items():
        metric, comma, kind = name.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        shown = f"{task}/{metric}" + (f" ({kind})" if kind != "none" else "")
        error = values.get(f"{metric}_stderr,{kind}")
        figures[shown] = {"mean": value, **({"se": error} if _is_number(error) else {})}
        if isinstance(better.get(metric), bool):
            figures[shown]["higher_is_better"] = better[metric]
    return figures


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
