"""The study's plots: learned against kept, a point per arm; and the shift on the task's inputs against the drift on
general instructions, a point per run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from experiments import BASE, SWEEPS

matplotlib.rcParams["svg.hashsalt"] = "selfaug"  # the same figures give the same file
GREY, PLAIN, SELFAUG, OTHER, CHEAPER = "0.45", "#b5532b", "#1f6f8b", "#79b4c9", "#4f8f4a"
DIALOGUES, USUAL, WHERE = "#7a5195", "#c9a227", "#a33b5c"
STYLES = {
    BASE: (GREY, "s"), "lora": (PLAIN, "o"),
    "selfaug-0.1": (SELFAUG, "v"), "selfaug-0.3": (SELFAUG, "<"), "selfaug-0.5": (SELFAUG, "o"),
    "selfaug-1.0": (SELFAUG, "^"), "falling": (SELFAUG, "1"), "rising": (SELFAUG, "2"),
    "strict-input": (OTHER, "o"), "output": (OTHER, "s"), "all": (OTHER, "D"), "tuned-base": (OTHER, "P"),
    "every-2": (CHEAPER, "v"), "every-4": (CHEAPER, "o"), "every-8": (CHEAPER, "^"),
    "shift-4": (CHEAPER, "s"), "shift-16": (CHEAPER, "D"), "uniform-4": (CHEAPER, "1"), "uniform-16": (CHEAPER, "2"),
    "economy": (CHEAPER, "P"),
    "align-q": (WHERE, "v"), "align-k": (WHERE, "<"), "align-v": (WHERE, "^"), "align-o": (WHERE, "o"),
    "align-attention": (WHERE, "s"), "align-ffn": (WHERE, "D"), "align-layers": (WHERE, "P"),
    "sasft": (DIALOGUES, "o"), "sasft-half": (DIALOGUES, "s"), "sasft-lower-lr": (DIALOGUES, "v"),
    "sasft-selfaug-0.5": (DIALOGUES, "D"), "anchors": (DIALOGUES, "P"),
    "lower-lr": (USUAL, "v"), "middle-lr": (USUAL, "<"), "selfaug-lower-lr": (SELFAUG, "P"),
    "selfaug-middle-lr": (SELFAUG, "X"), "lower-rank": (USUAL, "s"), "mlp-only": (USUAL, "o"),
    "interpolation": (USUAL, "D"), "early-stopping": (USUAL, "P"),
    "full": (GREY, "o"), "full-selfaug": (GREY, "P"),
}  # fmt: skip
NUMBERS = {"context-0.5k": "$.5$", "context-1k": "$1$", "context-2k": "$2$", "epochs-3": "$3$", "epochs-10": "$10$"}
STYLES |= {f"{begin}{arm}": (colour, number) for arm, number in NUMBERS.items()
           for begin, colour in (("", PLAIN), ("selfaug-", SELFAUG))}  # fmt: skip


def draw(summary: dict[str, Any], folder: Path) -> None:
    """Write study.png and study.svg."""
    figure, (learned, shift) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name, row in summary["arms"].items():
        colour, marker = STYLES[name]
        style = {"color": colour, "marker": marker, "ms": 7, "ls": "none"}
        kl, score = (row["estimates"][key] for key in ("kl", "exact_match"))
        learned.errorbar(
            kl["mean"], score["mean"], xerr=bars(kl), yerr=bars(score), elinewidth=0.8, label=row["title"], **style
        )
        if name != BASE and "input_kl" in row["estimates"]:
            shift.plot(row["estimates"]["input_kl"]["by_seed"], kl["by_seed"], **{**style, "ms": 5})
    for sweep in SWEEPS:
        points = [summary["arms"][name]["estimates"] for name in sweep.arms if name in summary["arms"]]
        line = [[point[key]["mean"] for point in points] for key in ("kl", "exact_match")]
        learned.plot(*line, color=STYLES[sweep.arms[0]][0], lw=0.8, alpha=0.5)
    learned.set(xlabel="drift on general instructions: KL to the base, nats per token", ylabel="task: exact match")
    learned.set(title="Learned against kept", xlim=(-0.02, None), ylim=(-0.02, None))
    shift.set(xlabel="shift on the task's inputs: KL, nats per token", ylabel="drift on general instructions: KL")
    shift.set(title="Shift and drift, one point per run", xlim=(0, None), ylim=(0, None))
    for axes in (learned, shift):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*learned.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(folder / "study.png", dpi=130, metadata={"Software": None})
    figure.savefig(folder / "study.svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def bars(estimate: dict[str, Any]) -> list[list[float]]:
    """The lengths of the error bar below and above the mean, in the shape that matplotlib expects."""
    return [[max(0.0, estimate["mean"] - estimate["low"])], [max(0.0, estimate["high"] - estimate["mean"])]]
