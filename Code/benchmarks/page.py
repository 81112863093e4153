"""docs/performance.md's tables and plots from the benchmark's own output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmark -->", "<!-- end of benchmark -->"


def write(results: Path, page: Path) -> None:
    """Replace what stands between the two marks in ``page``."""
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    parts = [_part(path) for path in sorted(results.glob("*.json"))]
    page.write_text(f"{before}{BEGIN}\n\n{''.join(parts)}{END}{after}", encoding="utf-8")
    plot(results)


def _part(path: Path) -> str:
    facts = json.loads(path.read_text())
    kind = path.stem.split("-")[0]
    title, made = {
        "time": ("Time of a step", _time_rows),
        "shares": ("Where SelfAug's step spends its time", _share_rows),
        "memory": ("Peak of the tensors above the weights", _memory_rows),
        "meta": ("Peak of the tensors above the weights, and FLOPs (meta device)", _meta_rows),
        "shapes": ("Whole models: peak of the tensors above the weights, and FLOPs (meta device)", _shape_rows),
    }[kind]
    what = f"{facts['layers']} layers of Qwen2.5-{facts['shape']}" if "layers" in facts else "Whole models"
    heading = f"### {title}{', gradient checkpointing' if facts['checkpointing'] else ''}\n\n"
    where = f"{facts['machine']}, {facts['threads']} thread, " if "machine" in facts else ""
    rounds = f", {facts['rounds']} rounds" if "rounds" in facts else ""
    note = f"{what}, {facts['dtype']}, {where}torch {facts['torch']}{rounds}.\n\n"
    return heading + note + "\n".join(made(facts["results"])) + "\n\n"


def _time_rows(results: dict[str, Any]) -> list[str]:
    rows = ["| T | | CPU seconds | of stock | FLOPs of stock | time / FLOPs |", "|---|---|---|---|---|---|"]
    for T, found in results.items():
        for name, row in found.items():
            floor = f"{row['floor']:.2f} | {row['ratio'] / row['floor']:.2f}" if "floor" in row else " | "
            rows.append(f"| {T} | {name} | {row['seconds']:.2f} | {row['ratio']:.2f} | {floor} |")
    return rows


def _share_rows(results: dict[str, Any]) -> list[str]:
    parts = list(next(iter(results.values())))
    rows = [f"| T | {' | '.join(parts)} |", "|---|" + "---|" * len(parts)]
    return rows + [f"| {T} | {' | '.join(f'{found[part]:.1%}' for part in parts)} |" for T, found in results.items()]


def _memory_rows(results: dict[str, Any]) -> list[str]:
    rows = ["| T | | tensors, MB | of stock | resident, MB |", "|---|---|---|---|---|"]
    for T, found in results.items():
        for name, row in found.items():
            tensors, resident = row["tensors"] / 1e6, row["resident"] / 1e6
            rows.append(f"| {T} | {name} | {tensors:.0f} | {row['ratio']:.3f} | {resident:.0f} |")
    return rows


def _meta_rows(results: dict[str, Any]) -> list[str]:
    rows = ["| T | | tensors, MB | of stock | FLOPs of stock |", "|---|---|---|---|---|"]
    for T, found in results.items():
        for name, row in found.items():
            figures = f"{row['tensors'] / 1e6:.0f} | {row['ratio']:.3f} | {row['flops_ratio']:.2f}"
            rows.append(f"| {T} | {name} | {figures} |")
    return rows


def _shape_rows(results: dict[str, Any]) -> list[str]:
    rows = ["| model | T | | tensors, GB | of stock | FLOPs of stock |", "|---|---|---|---|---|---|"]
    for shape, lengths in results.items():
        for T, found in lengths.items():
            for name, row in found.items():
                figures = f"{row['tensors'] / 1e9:.1f} | {row['ratio']:.3f} | {row['flops_ratio']:.2f}"
                rows.append(f"| {shape} | {T} | {name} | {figures} |")
    return rows


def plot(results: Path) -> None:
    """time.png and memory.png: ratio to stock by T. Nothing where matplotlib is missing."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for path in sorted([*results.glob("time*.json"), *results.glob("memory*.json"), *results.glob("meta*.json")]):
        found = json.loads(path.read_text())["results"]
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for name in next(iter(found.values())):
            lengths = [T for T in found if name in found[T]]
            axes.plot([int(T) for T in lengths], [found[T][name]["ratio"] for T in lengths], marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="T, tokens", ylabel="of stock LoRA", ylim=(0, None), title=path.stem)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path.with_suffix(".png"), dpi=120)
        pyplot.close(figure)
