"""The summary as Markdown, and its place in the page."""

from __future__ import annotations

from pathlib import Path

from arms import ARMS, BASE, DEFAULT, LORA
from sandbox import StepFailed

BEGIN, END = "<!-- study -->", "<!-- end of study -->"
DIGITS = {"exact_match": 2, "length": 1}
DERIVED = "of LoRA"


def block(summary: dict, folder: str) -> str:
    """What stands between the marks. ``folder``: of the raw figures and the plots, beside the page."""
    parts = [
        extent(summary),
        figures(summary),
        "**Differences to plain LoRA** on the same seeds and items, with 95 % intervals:",
        differences(summary, LORA),
        f"**Differences to {ARMS[DEFAULT].title}**, likewise:",
        differences(summary, DEFAULT),
        f"![learned against kept, and shift against drift]({folder}/study.png)",
        f"Raw figures, one file per run: [{folder}/runs]({folder}/runs). Summary: [study.json]({folder}/study.json).",
    ]
    return "\n\n".join(parts)


def extent(summary: dict) -> str:
    """How much of the study there is, in words."""
    done = {name: row["seeds"] for name, row in summary["arms"].items() if name != BASE}
    most = max(map(len, done.values()), default=0)
    few = [f"{ARMS[name].title} ({len(seeds)})" for name, seeds in done.items() if len(seeds) < most]
    none = [arm.title for name, arm in ARMS.items() if name not in done]
    text = f"{sum(map(len, done.values()))} runs: {len(done)} of {len(ARMS)} arms, with up to {most} seeds"
    text += f" ({', '.join(f'{name} {version}' for name, version in summary['versions'].items())})."
    text += f" Fewer seeds: {'; '.join(few)}." if few else ""
    return text + (f" Not run: {'; '.join(none)}." if none else "")


def figures(summary: dict) -> str:
    heading = "| | seeds | exact match | KL | top-1 | input KL | answer, tokens | s/step | CPU s | peak MB |"
    lines = [heading, "|---|" + "---:|" * 9]
    for name, row in summary["arms"].items():
        cells = [row["title"], str(len(row["seeds"])) if row["seeds"] else "-"]
        cells += [value(row["estimates"].get(key), key) for key in ("exact_match", "kl", "top1", "input_kl", "length")]
        lines.append(f"| {' | '.join([*cells, *spent(name, row['spent'])])} |")
    return "\n".join(lines)


def value(estimate: dict | None, key: str) -> str:
    if estimate is None:
        return ""
    digits = DIGITS.get(key, 3)
    return f"{estimate['mean']:.{digits}f}" + (f" ± {estimate['se']:.{digits}f}" if estimate["se"] else "")


def spent(name: str, figures: dict) -> list[str]:
    if name == BASE:
        return ["-", "-", "-"]
    if not ARMS[name].trained:
        return [DERIVED, f"{figures['cpu_seconds']:.0f}", DERIVED]
    whole = figures["cpu_seconds"] + figures.get("dialogues_cpu_seconds", 0)
    return [f"{figures['cpu_per_step']:.2f}", f"{whole:.0f}", f"{figures['peak_mb']:.0f}"]


def differences(summary: dict, other: str) -> str:
    keys = ("exact_match", "kl", "top1", "length")
    lines = ["| | exact match | KL | top-1 | answer, tokens | KL lower in |", "|---|" + "---:|" * 5]
    for name, row in summary["arms"].items():
        found = row["differences"][other]
        if name not in (BASE, other) and found:
            by_seed = found["kl"]["by_seed"]
            lower = f"{sum(one < 0 for one in by_seed)} of {len(by_seed)} seeds"
            cells = [row["title"], *(interval(found[key], key) for key in keys), lower]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(found: dict, key: str) -> str:
    digits = DIGITS.get(key, 3)
    return f"{found['mean']:+.{digits}f} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"


def write(page: Path, text: str) -> None:
    """Replace what stands between the marks of ``page``; a page without any gets them at its end.

    Raises:
        StepFailed: one mark without the other, or twice.
    """
    old = page.read_text(encoding="utf-8") if page.exists() else "# Results\n"
    if BEGIN not in old and END not in old:
        old += f"\n{BEGIN}\n{END}\n"
    if old.count(BEGIN) != 1 or old.count(END) != 1 or old.index(BEGIN) > old.index(END):
        raise StepFailed(f"{page}: expected {BEGIN} and {END}, once each, in this order. The page is as it was.")
    before, rest = old.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
