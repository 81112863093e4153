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
        row("the same in economy, see above", "time", to("economy", "stock fused")),
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
        "gpu": ("Whole models on a GPU", gpu_tables),
    }[kind]
    what = "Whole models" if kind in ("shapes", "gpu") else f"Qwen2.5-{facts['shape']}"
    what = f"The loss alone at the sizes of {what}" if kind == "chunks" else what
    what = f"{facts['layers']} layers of {what}" if "layers" in facts else what
    where = f"{facts['machine']}, " if "machine" in facts else ""
    where += f"{facts['threads']} thread, " if "threads" in facts else ""
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


def gpu_tables(results: dict[str, Any]) -> str:
    """What `gpu` measured: whole steps, what SelfAug's makes the GPU do and wait for, and the loss alone."""
    heading = ["model", "T", "", "tokens/s", "time of stock", "of fused stock", "peak, GB", "of stock", "loss"]
    steps = markdown(
        heading,
        (
            [shape, T, name, *_gpu_cells(cell)]
            for shape, lengths in results["steps"].items()
            for T, cells in lengths.items()
            for name, cell in cells.items()
        ),
    )
    watched = [
        [shape, T, name, *(_number(found.get(key)) for key in ("waits", "kernels", "copies")), _busy(found)]
        for shape, lengths in results["watched"].items()
        for T, names in lengths.items()
        for name, found in names.items()
        if "waits" in found or "kernels" in found
    ]
    alone = [
        [shape, *(_number(row.get(key)) for key in ("T", "block_mib", "chunk")), *_alone_cells(row)]
        for shape, rows in results["loss alone"].items()
        for row in rows
        if row.get("seconds") is not None
    ]
    tables = [steps]
    if watched:
        tables.append(markdown(["model", "T", "", "waits for the GPU", "kernels", "copies", "GPU busy"], watched))
    if alone:
        tables.append(markdown(["loss alone", "T", "block, MiB", "positions in a chunk", "ms", "peak, GB"], alone))
    return "\n\n".join(tables)


def _gpu_cells(cell: dict[str, Any]) -> list[str]:
    problem = next((kind for kind in ("out_of_memory", "left_out", "failed") if kind in cell), "")
    if problem:
        return [problem.replace("_", " "), "", "", "", "", ""]
    figures = [_number(cell["tokens_per_second"]), *(_number(cell[key], 3) for key in ("ratio", "fused_ratio"))]
    peaks = [_gigabytes(cell["peak"]), _number(cell["peak_ratio"], 3)]
    return [*figures, *peaks, _number(cell["loss"], 4)]


def _alone_cells(row: dict[str, Any]) -> list[str]:
    return [_number(1e3 * row["seconds"], 1), _gigabytes(row["above"])]


def _busy(found: dict[str, Any]) -> str:
    """How much of an ordinary step's time the GPU computes."""
    return f"{found['gpu_seconds'] / found['seconds']:.0%}" if found.get("gpu_seconds") else ""


def _gigabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


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
