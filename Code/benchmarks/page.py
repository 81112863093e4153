"""The tables and plots of docs/performance.md, from the benchmark's results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

from Code.toolkit.tables import between, markdown

TABLES = "<!-- benchmark -->", "<!-- end of benchmark -->"
SHORT = "<!-- in short -->", "<!-- end of in short -->"


def write(results: Path, page: Path) -> None:
    """Replace the tables between the marks of ``page``, and the plots."""
    page.write_text(filled(results, page.read_text(encoding="utf-8")), encoding="utf-8")
    plot(results)


def filled(results: Path, text: str) -> str:
    """``text`` of the page, with the tables of ``results`` between the marks."""
    text = between(text, SHORT, f"\n\n{_short(results)}\n\n")
    return between(text, TABLES, "\n\n" + "".join(_part(path) for path in sorted(results.glob("*.json"))))


def _short(results: Path) -> str:
    """Ratios of one variant to another. A cell is empty if one of the two was not measured."""
    by_file = {path.stem: json.loads(path.read_text(encoding="utf-8"))["results"] for path in results.glob("*.json")}
    lengths = ["512", "1024", "2048", "4096"]

    def row(title: str, name: str, figure: Callable[[dict[str, Any]], float], digits: int = 2) -> list[str]:
        cells = []
        for T in lengths:
            try:
                cells.append(f"{figure(by_file[name][T]):.{digits}f}")
            except KeyError:
                cells.append("")
        return [title, *cells]

    def to(one: str, other: str) -> Callable[[dict[str, Any]], float]:
        return lambda rows: rows[one]["ratio"] / rows[other]["ratio"]

    given = "from the second epoch on with the cache / the same loss without any reference pass"
    fused = "step time against *fused* stock, which makes logits at supervised positions only"
    rows = [
        row("step time", "time", to("selfaug", "stock")),
        row("step time / its FLOPs, both of stock", "time", lambda rows: _over_floor(rows["selfaug"])),
        row("step time, `SELFAUG_SAMPLE=0.25`", "time", to("sample 0.25", "stock")),
        row("step time, the authors' algorithm", "time", to("original", "stock")),
        row(given, "time", to("cached", "reference given")),
        row(fused, "time", to("selfaug", "stock fused")),
        row("the same in economy, see below", "time", to("economy", "stock fused")),
        row("step time with gradient checkpointing", "time-checkpointing", to("selfaug", "stock")),
        row("peak of the tensors", "meta", to("selfaug", "stock"), 3),
        row("the same with gradient checkpointing", "meta-checkpointing", to("selfaug", "stock"), 3),
        row("peak / that of the authors' algorithm", "meta", to("selfaug", "original"), 3),
    ]
    return markdown(["", *(f"T={T}" for T in lengths)], rows)


def _part(path: Path) -> str:
    facts = json.loads(path.read_text(encoding="utf-8"))
    kind = path.stem.split("-")[0]
    title, table = {
        "time": ("Time of a step", _time_table),
        "shares": ("Where SelfAug's step spends its time", _share_table),
        "chunks": ("Speed of the loss by chunk size", _chunk_table),
        "memory": ("Peak of the tensors above the weights", _memory_table),
        "meta": ("Peak of the tensors above the weights, and FLOPs (meta device)", _meta_table),
        "shapes": ("Whole models: peak of the tensors above the weights, and FLOPs (meta device)", _shape_table),
    }[kind]
    what = "Whole models" if kind == "shapes" else f"Qwen2.5-{facts['shape']}"
    what = f"The loss alone at the sizes of {what}" if kind == "chunks" else what
    what = f"{facts['layers']} layers of {what}" if "layers" in facts else what
    where = f"{facts['machine']}, {facts['threads']} thread, " if "machine" in facts else ""
    rounds = f", {facts['rounds']} rounds" if "rounds" in facts else ""
    heading = f"### {title}{', gradient checkpointing' if facts['checkpointing'] else ''}\n\n"
    note = f"{what}, {facts['dtype']}, {where}torch {facts['torch']}{rounds}.\n\n"
    return f"{heading}{note}{table(facts['results'])}\n\n"


def _over_floor(row: dict[str, float]) -> float:
    return row["ratio"] / row["floor"]


def _time_table(results: dict[str, Any]) -> str:
    rows = []
    for T, by_name in results.items():
        for name, row in by_name.items():
            floor = [f"{row['floor']:.2f}", f"{_over_floor(row):.2f}"] if "floor" in row else ["", ""]
            rows.append([T, name, f"{row['seconds']:.2f}", f"{row['ratio']:.2f}", *floor])
    return markdown(["T", "", "CPU seconds", "of stock", "FLOPs of stock", "time / FLOPs"], rows)


def _share_table(results: dict[str, Any]) -> str:
    parts = list(next(iter(results.values())))
    return markdown(["T", *parts], ([T, *(f"{row[part]:.1%}" for part in parts)] for T, row in results.items()))


def _chunk_table(results: dict[str, Any]) -> str:
    rows = [
        [T, size, f"{row['best'] / 1e9:.1f}", f"{row['median'] / 1e9:.1f}"]
        for T, by_size in results.items()
        for size, row in by_size.items()
    ]
    return markdown(["T", "aligned positions in a chunk", "GFLOP/s, best", "GFLOP/s, median"], rows)


def _rows(results: dict[str, Any], *cells: Callable[[dict[str, float]], str]) -> list[list[str]]:
    """A row for each length and variant, with what each of ``cells`` makes of the variant's figures."""
    return [
        [T, name, *(cell(figures) for cell in cells)]
        for T, by_name in results.items()
        for name, figures in by_name.items()
    ]


def _memory_table(results: dict[str, Any]) -> str:
    rows = _rows(results, _megabytes, _ratio, lambda figures: f"{figures['resident'] / 1e6:.0f}")
    return markdown(["T", "", "tensors, MB", "of stock", "resident, MB"], rows)


def _meta_table(results: dict[str, Any]) -> str:
    return markdown(["T", "", "tensors, MB", "of stock", "FLOPs of stock"], _rows(results, _megabytes, _ratio, _flops))


def _megabytes(figures: dict[str, float]) -> str:
    return f"{figures['tensors'] / 1e6:.0f}"


def _ratio(figures: dict[str, float]) -> str:
    return f"{figures['ratio']:.3f}"


def _flops(figures: dict[str, float]) -> str:
    return f"{figures['flops_ratio']:.2f}"


def _shape_table(results: dict[str, Any]) -> str:
    rows = [
        [shape, *row]
        for shape, lengths in results.items()
        for row in _rows(lengths, lambda figures: f"{figures['tensors'] / 1e9:.1f}", _ratio, _flops)
    ]
    return markdown(["model", "T", "", "tensors, GB", "of stock", "FLOPs of stock"], rows)


def plot(results: Path) -> None:
    """Draw a plot for each file of times or peaks: the ratio to stock over T. Draws nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    for path in sorted([*results.glob("time*.json"), *results.glob("memory*.json"), *results.glob("meta*.json")]):
        by_length = json.loads(path.read_text())["results"]
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for name in next(iter(by_length.values())):
            lengths = [T for T in by_length if name in by_length[T]]
            axes.plot([int(T) for T in lengths], [by_length[T][name]["ratio"] for T in lengths], marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="T, tokens", ylabel="of stock LoRA", ylim=(0, None), title=path.stem)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path.with_suffix(".png"), dpi=120)
        pyplot.close(figure)
