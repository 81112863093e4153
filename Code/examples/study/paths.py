"""The paths of a study's files, and the figures that child processes have written there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import ARMS, LORA, Run
from sandbox import StepFailed

from Code.toolkit.files import parse_json


@dataclass(frozen=True)
class Paths:
    """``output``: the folder for everything; ``records``: the folder of the runs' records."""

    output: Path
    records: Path

    @property
    def test(self) -> Path:
        return self.output / "data" / "test.jsonl"

    @property
    def base(self) -> Path:
        """The base model's answers and likelihoods, with which every measurement starts."""
        return self.output / "base.json"

    def data(self, seed: int, unrelated: int = 0) -> Path:
        """The seed's training data, without dialogues, with so many unrelated passages in each sample."""
        return self.output / "data" / f"train-{seed}{f'-{unrelated}' if unrelated else ''}.jsonl"

    def mixed(self, run: Run) -> Path:
        """The run's training data with dialogues."""
        return self.adapter(run).with_name("data.jsonl")

    def dialogues(self, seed: int, ending: str = ".jsonl") -> Path:
        return self.output / "data" / f"dialogues-{seed}{ending}"

    def adapter(self, run: Run) -> Path:
        return self.output / "runs" / run.name / "adapter"

    def spent(self, run: Run) -> Path:
        return self.adapter(run).with_name("spent.json")

    def code(self, run: Run | None) -> Path:
        """The answers to HumanEval of a run, or of the base model."""
        return self.adapter(run).with_name("code.jsonl") if run else self.output / "base-code.jsonl"

    def record(self, name: str) -> Path:
        return self.records / f"{name}.json"

    def took(self, run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
        """(cost of the training, log of its steps). An adapter that was derived from LoRA's has the cost and the log of
        LoRA's steps.
        """
        of = run if run.arm.trained else lora(run.seed)
        spent = read(self.spent(of))
        steps = spent["halfway" if run.arm.halfway else "training"]
        took = {"steps": steps["steps"], "cpu_seconds": round(steps["cpu_seconds"], 2)}
        took["cpu_per_step"] = round(steps["cpu_seconds"] / steps["steps"], 3)
        took["peak_mb"] = round(spent["process"]["peak_mb"])
        if run.arm.dialogues:
            written = read(self.dialogues(run.seed, ".spent.json"))["process"]
            took["dialogues_cpu_seconds"] = round(written["cpu_seconds"] * run.arm.dialogues, 1)
        history = read(self.adapter(of) / "trainer_state.json")["log_history"][: steps["steps"]]
        rows = [row for row in history if "loss" in row]
        logs = {"nll": [round(row.get("selfaug/nll", row["loss"]), 4) for row in rows]}
        if of.arm.settings:  # a step at alpha 0 is stock: it logs no KL, and its loss is the NLL
            term = "mse" if any("selfaug/mse" in row for row in rows) else "kl"
            logs[term] = [round(row[f"selfaug/{term}"], 4) if f"selfaug/{term}" in row else None for row in rows]
        return took, logs


def lora(seed: int) -> Run:
    """The run of plain LoRA. Arms that train nothing derive their adapters from its adapter."""
    return Run(ARMS[LORA], seed)


def read(file: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StepFailed(f"{file} cannot be read: {error}") from None
