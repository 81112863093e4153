"""Draws the plots, each as PNG and SVG. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from .bootstrap import standard_error
from .items import GENERAL, Items
from .summary import BASE
from .training_log import Row, series

FEWEST = 3  # a mean is drawn where at least so many answers reach the position
COLOURS = ("#b5532b", "#1f6f8b", "#7a9a2e", "#7b4b94", "#c79a1b", "#3c7d5a", "#a33b5c", "#5b6b7a")
_NAMED = 10  # with more adapters than this, each point has its name beside it and there is no legend


def draw(
    result: Mapping[str, Any], items: Mapping[str, Items], logs: Mapping[str, Sequence[Row]], folder: Path
) -> list[Path]:
    """Write every plot for which there are figures, and return the files. Removes other plots of an earlier run.

    Args:
        result: the content of ``retention.json``.
        items: the items of every adapter and of the base model.
        logs: the rows that the Trainer logged for each adapter, or empty lists.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = [name for name in result["models"] if name != BASE]
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(names)}
    written = []
    for plot in (learned_against_kept, kl_by_position, training, shift_against_forgetting):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        if plot(axes, colours, result["models"], items, logs):
            for kind in ("png", "svg"):
                written.append(folder / f"{plot.__name__}.{kind}")
                with matplotlib.rc_context({"svg.hashsalt": "selfaug"}):  # the same figures give the same file
                    figure.savefig(written[-1], dpi=150, metadata={"Date": None} if kind == "svg" else None)
        else:
            for kind in ("png", "svg"):
                (folder / f"{plot.__name__}.{kind}").unlink(missing_ok=True)
    return written


def history(rows: Sequence[Row], path: Path) -> None:
    """Write what the Trainer logged of one run over its steps: the loss, SelfAug's NLL and KL (or the MSE of
    SELFAUG_ALIGN) and, in a narrow plot below, alpha.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    drawn = {name: series(list(rows), name) for name in _LABELS}
    alpha = series(list(rows), "selfaug/alpha")
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    heights = [4, 1] if alpha[0] else [1]
    plots = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for (name, (steps, values)), colour, style in zip(drawn.items(), ("0.4", *COLOURS), (":", "-", "--", "-.")):
        if steps:
            mark = "o" if len(steps) == 1 else ""
            plots[0].plot(steps, values, style, marker=mark, color=colour, lw=1.2, label=_LABELS[name])
    unit = "nats per token; MSE" if drawn["selfaug/mse"][0] else "nats per token"
    plots[0].set(ylabel=unit, ylim=(0, None), title="Training")
    _legend(plots[0], 0)
    if alpha[0]:
        plots[1].plot(*alpha, drawstyle="steps-post", color=COLOURS[2], lw=1.2)
        plots[1].set(ylabel="alpha", ylim=(0, None))
    plots[-1].set(xlabel="training step")
    for axes in plots:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


_LABELS = {
    "loss": "loss",
    "selfaug/nll": "NLL",
    "selfaug/kl": "KL to the model without LoRA",
    "selfaug/mse": "MSE to the model without LoRA",
}


def learned_against_kept(
    axes: Any, colours: Mapping[str, str], models: Mapping[str, Any], items: Any, logs: Any
) -> bool:
    """Exact match over the KL to the base model, with 95 % intervals. The base model has KL 0."""
    if "exact_match" not in models[BASE]:
        return False
    for name, colour in colours.items():
        _point(axes, name, colour, models[name]["kl"], models[name]["exact_match"], len(colours))
    base = models[BASE]["exact_match"]
    axes.errorbar(0, base["mean"], yerr=1.96 * base["se"], fmt="o", color="0.4", capsize=3, label=BASE)
    axes.set(xlabel="drift: KL(base || tuned), nats per token", ylabel="task: exact match", ylim=(-0.03, 1.03))
    axes.set_title("Learned against kept")
    _legend(axes, len(colours))
    return True


def kl_by_position(axes: Any, colours: Mapping[str, str], models: Any, items: Mapping[str, Items], logs: Any) -> bool:
    """Mean KL at the n-th token of the answers, with a 95 % band. Leaves out positions that few answers reach."""
    for name, colour in colours.items():
        rows = [row["kl_by_position"] for row in items[name].rows[GENERAL]]
        columns = [[row[at] for row in rows if at < len(row)] for at in range(max(map(len, rows)))]
        columns = [column for column in columns if len(column) >= min(FEWEST, len(rows))]
        means = [fmean(column) for column in columns]
        spread = [1.96 * standard_error(column) for column in columns]
        positions = range(1, len(means) + 1)
        axes.plot(positions, means, color=colour, lw=1.2, label=name)
        low, high = ([mean + sign * s for mean, s in zip(means, spread)] for sign in (-1, 1))
        axes.fill_between(positions, [max(0.0, value) for value in low], high, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="token of the base model's answer", ylabel="KL(base || tuned), nats", ylim=(0, None))
    axes.set_title("Drift by position")
    _legend(axes, 0)
    return True


def training(axes: Any, colours: Mapping[str, str], models: Any, items: Any, logs: Mapping[str, Sequence[Row]]) -> bool:
    """The NLL (solid) and SelfAug's KL (dashed) that the Trainer logged, over the training steps."""
    drawn = False
    for name, colour in colours.items():
        rows = list(logs.get(name, ()))
        for style, what, keys in (
            ("-", "NLL", ("selfaug/nll", "loss")),
            ("--", "KL", ("selfaug/kl",)),
            ("-.", "MSE", ("selfaug/mse",)),
        ):
            steps, values = series(rows, *keys)
            if steps:
                axes.plot(steps, values, style, color=colour, lw=1.2, label=f"{name}: {what}")
                drawn = True
    axes.set(xlabel="training step", ylabel="nats per token", ylim=(0, None))
    axes.set_title("Both terms of the loss")
    if drawn:
        _legend(axes, 0)
    return drawn


def shift_against_forgetting(
    axes: Any, colours: Mapping[str, str], models: Mapping[str, Any], items: Any, logs: Any
) -> bool:
    """The paper's Figure 2: forgetting over the shift of the output distribution at the task's input.

    Forgetting is how much worse a model is on the first benchmark that all models have and whose direction the harness
    gives. Without such a benchmark, it is the share of the base model's tokens that are no longer the likeliest.
    """
    if not all("input_kl" in models[name] for name in colours):
        return False
    common = [
        metric
        for metric, base in _harness(models[BASE]).items()
        if "higher_is_better" in base and all(metric in _harness(models[name]) for name in colours)
    ]
    sign, what = 1, "top-1 tokens that changed"
    if common:
        sign = 1 if _harness(models[BASE])[common[0]]["higher_is_better"] else -1
        what = f"{'loss' if sign > 0 else 'rise'} of {common[0]}"
    for name, colour in colours.items():
        if common:
            ours, base = _harness(models[name])[common[0]], _harness(models[BASE])[common[0]]
            worse = sign * (base["mean"] - ours["mean"])
            lost = {"mean": worse, "se": sqrt(base.get("se", 0) ** 2 + ours.get("se", 0) ** 2)}
        else:
            lost = {"mean": 1 - models[name]["top1"]["mean"], "se": models[name]["top1"]["se"]}
        _point(axes, name, colour, models[name]["input_kl"], lost, len(colours))
    axes.plot(0, 0, "o", color="0.4", label=BASE)
    axes.set(xlabel="shift: KL at the task's input, nats per token")
    axes.set_ylabel(f"forgetting: {what}")
    axes.set_title("Shift against forgetting")
    _legend(axes, len(colours))
    return True


def _harness(model: Mapping[str, Any]) -> Mapping[str, Any]:
    results: Mapping[str, Any] = model.get("lm_eval", {})
    return results


def _point(axes: Any, name: str, colour: str, x: Mapping[str, float], y: Mapping[str, float], of: int) -> None:
    spread = {"xerr": 1.96 * x["se"], "yerr": 1.96 * y["se"]}
    axes.errorbar(x["mean"], y["mean"], **spread, fmt="o", ms=6, capsize=3, color=colour, label=name)
    if of > _NAMED:
        axes.annotate(name, (x["mean"], y["mean"]), xytext=(4, 4), textcoords="offset points", fontsize=6)


def _legend(axes: Any, of: int) -> None:
    if of <= _NAMED:
        axes.legend(frameon=False, fontsize=8)
