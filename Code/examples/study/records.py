"""One file per run: the figures of every single item, without any text. All that the page says comes from these."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from sandbox import StepFailed

DIGITS = 4
GENERAL = ("kl", "reverse_kl", "top1", "base_nll", "nll", "tokens", "length", "ended", "list", "one_word")
EARLIER = {"max_length": 2048}  # settings that earlier records do not name, as they were then
TASK = ("exact_match", "contains", "f1", "input_kl", "input_top1")


def columns(items: list[dict], wanted: Iterable[str]) -> dict[str, list]:
    """Item by item to column by column, rounded, of those items that have it; columns that none has are left out."""
    found = {name: [rounded(item[name]) for item in items if name in item] for name in wanted}
    return {name: values for name, values in found.items() if values}


def rounded(value: object) -> object:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        short = round(value, DIGITS)
        return int(short) if short == int(short) else short
    return value


def compact(items: dict) -> dict:
    """What ``items/NAME.json`` of the retention tool says, without texts."""
    found = {"general": columns(items["general"], GENERAL), "task": columns(items["task"], TASK)}
    curves = [item["kl_by_position"] for item in items["general"] if "kl_by_position" in item]
    return {**found, "by_position": {"kl": by_position(curves)}}


def by_position(curves: Sequence[Sequence[float]]) -> list:
    """Mean at each position over those that are long enough."""
    means = []
    for at in range(max(map(len, curves), default=0)):
        means.append(rounded(fmean(curve[at] for curve in curves if len(curve) > at)))
    return means


def write(file: Path, record: dict) -> None:
    """One line per column: short, and a change of one figure shows as one line."""
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


def read(folder: Path) -> list[dict]:
    """All records in a folder, by name.

    Raises:
        StepFailed: a file that is no record.
    """
    found = []
    for file in sorted(folder.glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found.append({**record, "arm": record["arm"], "seed": record["seed"], "setting": record["setting"]})
        except (ValueError, KeyError, TypeError) as error:
            raise StepFailed(f"{file} is no record of a run ({error}). Delete it, and the run is done again.") from None
    return found


def check(found: list[dict], setting: dict, folder: Path) -> None:
    """Figures of different settings are not put side by side.

    Raises:
        StepFailed: a record that was made otherwise.
    """
    setting = {**EARLIER, **setting}
    for record in found:
        theirs = {**EARLIER, **record["setting"]}
        other = [f"{key} {theirs.get(key)!r}, now {now!r}" for key, now in setting.items() if theirs.get(key) != now]
        if other:
            raise StepFailed(
                f"{folder} has the run {record['arm']} of another setting: {'; '.join(other)}.\n"
                "Give --results another folder. Nothing was run."
            )
