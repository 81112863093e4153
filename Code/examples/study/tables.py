"""The summary as Markdown tables, and their place in the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import ARMS, BASE, DEFAULT, LORA, SAME
from frontier import SHARES
from sandbox import StepFailed

from Code.toolkit.tables import between, markdown

BEGIN, END = "<!-- study -->", "<!-- end of study -->"
DIGITS = {"exact_match": 2, "f1": 2, "unanswerable": 2, "code": 3, "length": 1}
HEADS = {
    "exact_match": "exact match", "f1": "F1", "unanswerable": "without answer", "code": "HumanEval", "kl": "KL",
    "top1": "top-1", "input_kl": "input KL", "length": "answer, tokens",
}  # fmt: skip
DERIVED = "of LoRA"
SAME_TRAINING = "**Differences to the same training without SelfAug**, where that is not plain LoRA:"
SAME_SCORE = (
    "the least KL that a sweep reaches with 80, 90 and 100 % of plain LoRA's exact match, on straight lines "
    "through its arms. A dash: not reached."
)


def block(summary: dict[str, Any], folder: str) -> str:
    """The text between the marks. ``folder``: the folder of the raw figures and plots, beside the page."""
    same = differences(summary, SAME) if any(row["differences"][SAME] for row in summary["arms"].values()) else ""
    parts = [
        extent(summary),
        figures(summary),
        "**Differences to plain LoRA** on the same seeds and items, with 95 % intervals:",
        differences(summary, LORA),
        f"**Differences to {ARMS[DEFAULT].title}**, likewise:",
        differences(summary, DEFAULT),
        *([SAME_TRAINING, same] if same else []),
        *(["**Kept at the same task score**: " + SAME_SCORE, sweeps(summary)] if summary["sweeps"] else []),
        f"![learned against kept, and shift against drift]({folder}/study.png)",
        f"Raw figures, one file per run: [{folder}/runs]({folder}/runs). Summary: [study.json]({folder}/study.json).",
    ]
    return "\n\n".join(parts)


def extent(summary: dict[str, Any]) -> str:
    """How much of the study is done, in words."""
    done = {name: row["seeds"] for name, row in summary["arms"].items() if name != BASE}
    most = max(map(len, done.values()), default=0)
    few = [f"{ARMS[name].title} ({len(seeds)})" for name, seeds in done.items() if len(seeds) < most]
    text = f"{sum(map(len, done.values()))} runs: {len(done)} of {len(ARMS)} arms, with up to {most} seeds"
    text += f" ({', '.join(f'{name} {version}' for name, version in summary['versions'].items())})."
    return text + (f" Fewer seeds: {'; '.join(few)}." if few else "")


def figures(summary: dict[str, Any]) -> str:
    rows, keys = [], shown(summary, ("exact_match", "f1", "unanswerable", "code", "kl", "top1", "input_kl", "length"))
    for name, row in summary["arms"].items():
        cells = [row["title"], str(len(row["seeds"])) if row["seeds"] else "-"]
        cells += [value(row["estimates"].get(key), key) for key in keys]
        rows.append([*cells, *spent(name, row["spent"])])
    heading = ["", "seeds", *(HEADS[key] for key in keys), "s/step", "CPU s", "peak MB"]
    return markdown(heading, rows, align_right=True)


def shown(summary: dict[str, Any], keys: tuple[str, ...]) -> list[str]:
    """The metrics in ``keys``, without HumanEval if no run has it."""
    measured = any("code" in row["estimates"] for row in summary["arms"].values())
    return [key for key in keys if key != "code" or measured]


def value(estimate: dict[str, Any] | None, key: str) -> str:
    if estimate is None:
        return ""
    digits = DIGITS.get(key, 3)
    return f"{estimate['mean']:.{digits}f}" + (f" ± {estimate['se']:.{digits}f}" if estimate["se"] else "")


def spent(name: str, figures: dict[str, Any]) -> list[str]:
    if name == BASE:
        return ["-", "-", "-"]
    if not ARMS[name].trained:
        return [DERIVED, f"{figures['cpu_seconds']:.0f}", DERIVED]
    whole = figures["cpu_seconds"] + figures.get("dialogues_cpu_seconds", 0)
    return [f"{figures['cpu_per_step']:.2f}", f"{whole:.0f}", f"{figures['peak_mb']:.0f}"]


def differences(summary: dict[str, Any], other: str) -> str:
    keys = shown(summary, ("exact_match", "code", "kl", "top1", "length"))
    rows = []
    for name, row in summary["arms"].items():
        difference = row["differences"][other]
        if name not in (BASE, other) and difference:
            by_seed = difference["kl"]["by_seed"]
            lower = f"{sum(one < 0 for one in by_seed)} of {len(by_seed)} seeds"
            rows.append([row["title"], *(interval(difference[key], key) for key in keys), lower])
    return markdown(["", *(HEADS[key] for key in keys), "KL lower in"], rows, align_right=True)


def sweeps(summary: dict[str, Any]) -> str:
    """What is kept at the same task score, a row per sweep."""
    rows, shares = [], [f"{share:g}" for share in SHARES]
    for title, sweep in summary["sweeps"].items():
        cells = [range_of(sweep["at"][share]["kl"], "") for share in shares]
        difference = sweep["at"]["0.9"].get("difference")
        rows.append([title, str(len(sweep["arms"])), *cells, range_of(difference, "+") if difference else ""])
    at = [f"KL at {share:.0%}".replace("%", " %") for share in SHARES]
    heading = ["sweep", "arms", *at, "at 90 %, against the first row"]
    return markdown(heading, rows, align_right=True)


def range_of(estimate: dict[str, Any], sign: str) -> str:
    """A figure with its interval. None, a score that is not reached, is a dash."""
    mean, low, high = ("-" if estimate[k] is None else f"{estimate[k]:{sign}.2f}" for k in ("mean", "low", "high"))
    return mean if mean == low == high == "-" else f"{mean} [{low}, {high}]"


def interval(estimate: dict[str, Any], key: str) -> str:
    digits = DIGITS.get(key, 3)
    return f"{estimate['mean']:+.{digits}f} [{estimate['low']:+.{digits}f}, {estimate['high']:+.{digits}f}]"


def write(page: Path, text: str) -> None:
    """Replace the text between the marks of ``page``. A page without marks gets them at its end.

    Raises:
        StepFailed: the page has one mark without the other, or a mark twice.
    """
    old = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
    if BEGIN not in old and END not in old:
        old += f"\n{BEGIN}\n{END}\n"
    try:
        new = between(old, (BEGIN, END), f"\n\n{text}\n\n")
    except ValueError as error:
        raise StepFailed(f"{page}: {error}. The page is as it was.") from None
    page.write_text(new, encoding="utf-8")
