"""Result files of lm-evaluation-harness, read for the same table: IFEval, MMLU, GSM8K and the like are its work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from ..toolkit.files import read_json

_PATTERN = "results*.json"
_EXPECTED = "what lm_eval --output_path wrote (results_*.json)"


def read(path: Path) -> dict[str, dict[str, float]]:
    """``{"task/metric": {"mean", "se", "higher_is_better"}}`` of a result file, or of all below a folder: where several
    have a task, the one with the latest name counts, and the names end in the time. What the harness does not give of
    the last two is left out.

    Raises:
        Refusal: there is no result, or a file is none.
    """
    files = sorted(path.rglob(_PATTERN), key=lambda file: file.name) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        found = "a folder without one" if path.is_dir() else "no such file"
        raise Refusal("no-results", f"{path} has no results of lm-evaluation-harness", _EXPECTED, found)
    tasks: dict[str, dict[str, dict[str, float]]] = {}
    for file in files:
        results, better = _results(file)
        for task, values in results.items():
            of_task = better.get(task)
            tasks[task] = _metrics(task, values, of_task if isinstance(of_task, dict) else {})
    return {name: figures for metrics in tasks.values() for name, figures in metrics.items()}


def _results(file: Path) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, Any]]:
    """The figures by task and, where the harness says it, of which metrics higher is better."""
    try:
        content = read_json(file)
        results, better = content["results"], content.get("higher_is_better")
    except (OSError, KeyError, TypeError, AttributeError) as error:
        what = f"{file} is no result file of lm-evaluation-harness"
        raise Refusal("no-results", what, _EXPECTED, f"{type(error).__name__}: {error}") from None
    except Refusal as refusal:
        what, found = f"{file} is no result file of lm-evaluation-harness", refusal.found or refusal.what
        raise Refusal("no-results", what, _EXPECTED, found) from None
    if not isinstance(results, dict) or not all(isinstance(values, dict) for values in results.values()):
        raise Refusal("no-results", f"{file} is no result file of lm-evaluation-harness", _EXPECTED)
    return results, better if isinstance(better, dict) else {}


def _metrics(task: str, values: Mapping[str, Any], better: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The harness names a figure ``metric,filter`` and its error ``metric_stderr,filter``."""
    found = {}
    for name, value in values.items():
        metric, comma, kind = name.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        shown = f"{task}/{metric}" + (f" ({kind})" if kind != "none" else "")
        error = values.get(f"{metric}_stderr,{kind}")
        found[shown] = {"mean": value, **({"se": error} if _is_number(error) else {})}
        if isinstance(better.get(metric), bool):
            found[shown]["higher_is_better"] = better[metric]
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
