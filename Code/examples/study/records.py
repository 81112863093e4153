"""Records of runs, a file each: the figures of every single item, without any text. The page is made from the records
alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import humaneval_file
import record_form
from sandbox import StepFailed

from Code.toolkit.errors import Refusal
from Code.toolkit.files import read_json

DIGITS = 4
GENERAL = ("kl", "reverse_kl", "top1", "base_nll", "nll", "tokens", "length", "ended", "list", "one_word")
EARLIER = {"max_length": 2048, "code": None}  # the values of settings that earlier records do not have
CODE = ("passed", "length", "ended")
TASK = ("exact_match", "contains", "f1", "input_kl", "input_top1")


def columns(items: list[dict[str, Any]], wanted: Iterable[str]) -> dict[str, list[Any]]:
    """The wanted columns of the items, rounded, without items that lack a column and columns that no item has."""
    values_by_name = {name: [rounded(item[name]) for item in items if name in item] for name in wanted}
    return {name: values for name, values in values_by_name.items() if values}


def rounded(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        short = round(value, DIGITS)
        return int(short) if short == int(short) else short
    return value


def compact(items: dict[str, Any]) -> dict[str, Any]:
    """The figures in ``items/NAME.json`` of the retention tool, without texts."""
    figures = {"general": columns(items["general"], GENERAL), "task": columns(items["task"], TASK)}
    curves = [item["kl_by_position"] for item in items["general"] if "kl_by_position" in item]
    return {**figures, "by_position": {"kl": by_position(curves)}}


def code(file: Path) -> dict[str, Any]:
    """The figures in a file of ``Code.examples.demo.humaneval``, without texts, in the order of the problems."""
    return columns(humaneval_file.answers(file), CODE)


def by_position(curves: Sequence[Sequence[float]]) -> list[Any]:
    """The mean at each position over the curves that are long enough."""
    means = []
    for at in range(max(map(len, curves), default=0)):
        means.append(rounded(fmean(curve[at] for curve in curves if len(curve) > at)))
    return means


def write(file: Path, record: dict[str, Any]) -> None:
    """Write a record with one line per column, which keeps the file short and its diffs readable."""
    lines = []
    for name, value in record.items():
        if isinstance(value, dict):
            inner = ",\n  ".join(f"{json.dumps(key)}: {short(one)}" for key, one in value.items())
            lines.append(f"{json.dumps(name)}: {{\n  {inner}\n }}" if value else f"{json.dumps(name)}: {{}}")
        else:
            lines.append(f"{json.dumps(name)}: {short(value)}")
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(".new")
    new.write_text("{\n " + ",\n ".join(lines) + "\n}\n", encoding="utf-8")
    new.replace(file)


def short(value: object) -> str:
    separators = (",", ":") if isinstance(value, list) else (", ", ": ")
    return json.dumps(value, ensure_ascii=False, separators=separators)


def read(folder: Path) -> list[dict[str, Any]]:
    """All records in a folder, in the order of their names.

    Raises:
        StepFailed: a file is not a record, or two do not go together. The error names the files.
    """
    records: list[dict[str, Any]] = []
    runs: dict[tuple[str, int | None], Path] = {}
    first: dict[str, tuple[Path, dict[str, Any]]] = {}  # of each setting; "check" refuses others than one
    for file in sorted(folder.glob("*.json")):
        try:
            record = record_form.checked(read_json(file))
        except (Refusal, ValueError) as error:
            reason = error.what if isinstance(error, Refusal) else str(error)
            raise StepFailed(
                f"{file} is no record of a run ({reason}). Delete it or move it away, and the run is done again."
            ) from None
        other = runs.setdefault((record["arm"], record["seed"]), file)
        if other != file:
            raise StepFailed(f"{other} and {file} are records of the same run. Delete one of them.")
        setting = json.dumps({**EARLIER, **record["setting"]}, sort_keys=True)
        beside, known = first.setdefault(setting, (file, record))
        try:
            record_form.compare(record, known)
        except ValueError as error:
            raise StepFailed(f"{file} does not go with {beside} ({error}). Delete the wrong one.") from None
        records.append(record)
    return records


def check(records: list[dict[str, Any]], setting: dict[str, Any], folder: Path) -> None:
    """Make sure that all records have the same setting: figures of different settings do not belong in one table.

    Raises:
        StepFailed: a record has another setting.
    """
    setting = {**EARLIER, **setting}
    for record in records:
        theirs = {**EARLIER, **record["setting"]}
        other = [f"{key} {theirs.get(key)!r}, now {now!r}" for key, now in setting.items() if theirs.get(key) != now]
        if other:
            raise StepFailed(
                f"{folder} has the run {record['arm']} of another setting: {'; '.join(other)}.\n"
                "Give --results another folder. Nothing was run."
            )
