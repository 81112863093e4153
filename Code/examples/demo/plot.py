"""Draws the demo's figure: learned against kept, the drift of each prompt, and both terms of the loss over training.

The demo runs this module in its own environment, in the checkout: ``python -m Code.examples.demo.plot RETENTION_DIR
OUTPUT_PNG LORA_DIR SELFAUG_DIR [ADAPTER_DIR …]``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from Code.retention import plots, training_log


def prompt_by_prompt(axes: Any, plain: list[float], aligned: list[float]) -> None:
    top = 1.05 * max(*plain, *aligned)
    axes.plot([0, top], [0, top], color="0.7", lw=1)
    axes.scatter(plain, aligned, s=22, color=plots.COLOURS[1], alpha=0.8)
    axes.set(xlim=(0, top), ylim=(0, top), title="Drift, one dot per instruction")
    axes.set(xlabel="KL with LoRA", ylabel="KL with LoRA + SelfAug")


def main(retention: str, output: str, *adapters: str) -> None:
    folders = {Path(adapter).name: Path(adapter) for adapter in adapters}
    colours = dict(zip(folders, plots.COLOURS))
    models = json.loads(Path(retention, "retention.json").read_text(encoding="utf-8"))["models"]
    items = {name: json.loads(Path(retention, "items", f"{name}.json").read_text(encoding="utf-8")) for name in folders}
    logs = {name: training_log.logs(folder) for name, folder in folders.items()}
    figure = Figure(figsize=(13, 4), layout="constrained")
    learned, prompts, steps = figure.subplots(1, 3)
    plots.learned_against_kept(learned, colours, models, items, logs)
    prompt_by_prompt(prompts, *([row["kl"] for row in items[name]["general"]] for name in list(folders)[:2]))
    plots.training(steps, colours, models, items, logs)
    for axes in (learned, prompts, steps):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
