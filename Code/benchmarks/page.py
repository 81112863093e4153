"""docs/performance.md's tables and plots from the benchmark's own output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

TABLES = "<!-- benchmark -->", "<!-- end of benchmark -->"
SHORT = "<!-- in short -->", "<!-- end of in short -->"


def write(results: Path, page: Path) -> None:
    """Replace what stands between the marks in ``page``, and the plots."""
    page.write_text(filled(results, page.read_text(encoding="utf-8")), encoding="utf-8")
    plot(results)


def filled(results: Path, text: str) -> str:
    """The page's ``text`` with the tables of ``results`` between its marks."""
    text = _between(text, SHORT, "\n".join(_short(results)) + "\n\n")
    return _between(text, TABLES, "".join(_part(path) for path in sorted(results.glob("*.json"))))


def _between(text: str, marks: tuple[str, str], content: str) -> str:
    before, rest = text.split(marks[0])
    return f"{before}{marks[0]}\n\n{content}{marks[1]}{rest.split(marks[1])[1]}"


def _short(results: Path) -> list[str]:
    """Ratios of one row to another; nothing where one of them was not measured."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8"))["results"] for path in results.glob("*.json")}
    lengths = ["512", "1024", "2048", "4096"]

    def row(title: str, name: str, figure: Callable[[dict[str, Any]], float], digits: int = 2) -> str:
        cells = []
        for T in lengths:
            try:
                cells.append(f"{figure(found[name][T]):.{digits}f}")
            except KeyError:
                cells.append("")
        return f"| {title} | {' | '.join(cells)} |"

    def to(one: str, other: str) -> Callable[[dict[str, Any]], float]:
        return lambda rows: rows[one]["ratio"] / rows[other]["ratio"]

    given = "from the second epoch on with the cache / the same loss without any reference pass"
    fused = "step time against *fused* stock, which makes logits at supervised positions only"
    return [
        "| | " + " | ".join(f"T={T}" for T in lengths) + " |",
        "|---|" + "---|" * len(lengths),
        row("step time", "time", to("selfaug", "stock")),
        row("step time / its FLOPs, both of stock", "time", lambda rows: _over_floor(rows["selfaug"])),
        row("step time, `SELFAUG_SAMPLE=0.25`", "time", to("sample 0.25", "stock")),
        row("step time, the authors' algorithm", "time", to("original", "stock")),
        row(given, "time", to("cached", "reference given")),
        row(fused, "time", to("selfaug", "stock fused")),
        row("step time with gradient checkpointing", "time-checkpointing", to("selfaug", "stock")),
        row("peak of the tensors", "meta", to("selfaug", "stock"), 3),
        row("the same with gradient checkpointing", "meta-checkpointing", to("selfaug", "stock"), 3),
        row("peak / that of the authors' algorithm", "meta", to("selfaug", "original"), 3),
    ]


def _part(path: Path) -> str:
    facts = json.loads(path.read_text(encoding="utf-8"))
    kind = path.stem.split("-")[0]
    title, made = {
        "time": ("Time of a step", _time_rows),
        "shares": ("Where SelfAug's step spends its time", _share_rows),
        "chunks": ("Speed of the loss by chunk size", _chunk_rows),
        "memory": ("Peak of the tensors above the weights", _memory_rows),
        "meta": ("Peak of the tensors above the weights, and FLOPs (meta device)", _meta_rows),
        "shapes": ("Whole models: peak of the tensors above the weights, and FLOPs (meta device)", _shape_rows),
    }[kind]
    what = "Whole models" if kind == "shapes" else f"Qwen2.5-{facts['shape']}"
    what = f"The loss alone at the sizes of {what}" if kind == "chunks" else what
    what = f"{facts['layers']} layers of {what}" if "layers" in facts else what
    where = f"{facts['machine']}, {facts['threads']} thread, " if "machine" in facts else ""
    rounds = f", {facts['rounds']} rounds" if "rounds" in facts else ""
    heading = f"### {title}{', gradient checkpointing' if facts['checkpointing'] else ''}\n\n"
    note = f"{what}, {facts['dtype']}, {where}torch {facts['torch']}{rounds}.\n\n"
    return heading + note + "\n".join(made(facts["results"])) + "\n\n"


def _over_floor(row: dict[str, float]) -> float:
    return row["ratio"] / row["floor"]


def _time_rows(results: dict[str, Any]) -> list[str]:
    rows = ["| T | | CPU seconds | of stock | FLOPs of stock | time / FLOPs |", "|---|---|---|---|---|---|"]
    for T, found in results.items():
        for name, row in found.items():
            floor = f"{row['floor']:.2f} | {_over_floor(row):.2f}" if "floor" in row else " | "
            rows.append(f"| {T} | {name} | {row['seconds']:.2f} | {row['ratio']:.2f} | {floor} |")
    return rows


def _share_rows(results: dict[str, Any]) -> list[str]:
    parts = list(next(iter(results.values())))
    rows = [f"| T | {' | '.join(parts)} |", "|---|" + "---|" * len(parts)]
    return rows + [f"| {T} | {' | '.join(f'{found[part]:.1%}' for part in parts)} |" for T, found in results.items()]


def _chunk_rows(results: dict[str, Any]) -> list[str]:
    rows = ["| T | aligned positions in a chunk | GFLOP/s, best | GFLOP/s, median |", "|---|---|---|---|"]
    for T, found in results.items():
        for size, row in found.items():
            rows.append(f"| {T} | {size} | {row['best'] / 1e9:.1f} | {row['median'] / 1e9:.1f} |")
    return rows


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
