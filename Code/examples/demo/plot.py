"""The demo's figure: learned against kept, drift prompt by prompt, and both terms of the loss over training.

Run by the demo inside its own environment: ``python plot.py MEASURES SUMMARY LORA_STATE SELFAUG_STATE OUTPUT_PNG``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from report import ALIGNED, PLAIN, TITLES, mean_bars

COLOURS = {PLAIN: "#b5532b", ALIGNED: "#1f6f8b"}


def draw(figures: dict, summary: dict, logs: dict[str, list[dict]], output: Path) -> None:
    figure, (learned, prompts, steps) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    learned_against_kept(learned, figures, summary)
    prompt_by_prompt(prompts, figures)
    over_training(steps, logs)
    for axes in (learned, prompts, steps):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output, dpi=150)


def learned_against_kept(axes: plt.Axes, figures: dict, summary: dict) -> None:
    for name, bar in mean_bars(figures, "kl").items():
        score = summary["models"][name]["exact_match"]
        spread = [[bar.mean - bar.low], [bar.high - bar.mean]]
        axes.errorbar(
            bar.mean, score["mean"], xerr=spread, yerr=1.96 * score["se"], fmt="o", ms=8, capsize=3,
            color=COLOURS[name], label=TITLES[name],
        )  # fmt: skip
    base = summary["models"]["base"]["exact_match"]["mean"]
    axes.plot(0, base, "o", ms=8, color="0.4", label=TITLES["base"])
    axes.set(xlim=(-0.02, None), ylim=(-0.03, 1), title="Learned against kept")
    axes.set(xlabel="drift: KL to the base, nats per token", ylabel="task: exact match")
    axes.legend(frameon=False, loc="lower right")


def prompt_by_prompt(axes: plt.Axes, figures: dict) -> None:
    plain, aligned = ([row["kl"] for row in figures["models"][name]["drift"]] for name in (PLAIN, ALIGNED))
    top = 1.05 * max(*plain, *aligned)
    axes.plot([0, top], [0, top], color="0.7", lw=1)
    axes.scatter(plain, aligned, s=22, color=COLOURS[ALIGNED], alpha=0.8)
    axes.set(xlim=(0, top), ylim=(0, top), title="Drift, one dot per instruction")
    axes.set(xlabel=f"KL with {TITLES[PLAIN]}", ylabel=f"KL with {TITLES[ALIGNED]}")


def over_training(axes: plt.Axes, logs: dict[str, list[dict]]) -> None:
    series = [
        (PLAIN, "loss", "-", "NLL, LoRA"),
        (ALIGNED, "selfaug/nll", "-", "NLL, LoRA + SelfAug"),
        (ALIGNED, "selfaug/kl", "--", "KL at the input, LoRA + SelfAug"),
    ]
    for name, key, style, label in series:
        rows = [row for row in logs[name] if key in row]
        axes.plot([row["step"] for row in rows], [row[key] for row in rows], style, color=COLOURS[name], label=label)
    axes.set(xlabel="training step", ylabel="nats per token", ylim=(0, None), title="Both terms of the loss")
    axes.legend(frameon=False)


def main(measures: str, summary: str, plain_state: str, aligned_state: str, output: str) -> None:
    figures, summed, plain, aligned = (
        json.loads(Path(file).read_text(encoding="utf-8")) for file in (measures, summary, plain_state, aligned_state)
    )
    draw(figures, summed, {PLAIN: plain["log_history"], ALIGNED: aligned["log_history"]}, Path(output))


if __name__ == "__main__":
    main(*sys.argv[1:])
