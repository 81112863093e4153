"""Run an unchanged script or module in this process, and record its CPU time, memory and training steps.

    python runner.py RECORD.json [--halfway DIR] [--alpha-to X] [--samples N] SCRIPT ARGS...
    python runner.py RECORD.json -m MODULE ARGS...

The record has CPU time, not wall time, because others may use the machine. If the command trains with a Trainer, the
record has the number of steps and their CPU time, without imports and loading. ``--halfway`` saves the adapter after
half of the steps, which is early stopping under the schedule of the whole training. ``--alpha-to`` moves SelfAug's
alpha from SELFAUG_ALPHA at the first step to X at the last step. ``--samples`` ends the command before the first step
if the training has another number of samples.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, trainer

BYTES_OF_RSS = 1 if sys.platform == "darwin" else 1024


class Meter(TrainerCallback):
    """Counts steps and their CPU seconds. The class holds the counts, because the command makes the Trainer."""

    halfway: Path | None = None
    samples: int | None = None
    began = 0.0
    record: dict[str, Any] = {}  # noqa: RUF012

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **given: Any) -> None:
        size = len(train_dataloader.dataset)
        if Meter.samples not in (None, size):
            raise SystemExit(f"expected {Meter.samples} training samples, found {size}: some are too long. Give "
                             "--max-length more tokens, or shorter samples.")  # fmt: skip
        Meter.began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        if state.global_step == state.max_steps // 2 and Meter.halfway is not None:
            model.save_pretrained(Meter.halfway)
            Meter.record["halfway"] = self.spent(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        Meter.record["training"] = self.spent(state)

    def spent(self, state: Any) -> dict[str, float]:
        return {"steps": state.global_step, "cpu_seconds": time.process_time() - Meter.began}


class Ramp(TrainerCallback):
    """Moves alpha on a straight line over the steps."""

    end = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        start = float(os.environ["SELFAUG_ALPHA"])
        share = state.global_step / max(1, state.max_steps - 1)
        model.config.selfaug = {"alpha": start + (Ramp.end - start) * share}


def main(record: str, *command: str) -> None:
    arguments = list(command)
    callbacks: list[Any] = trainer.DEFAULT_CALLBACKS
    callbacks.append(Meter)
    if arguments[0] == "--halfway":
        Meter.halfway = Path(arguments[1])
        del arguments[:2]
    if arguments[0] == "--alpha-to":
        Ramp.end = float(arguments[1])
        callbacks.append(Ramp)
        del arguments[:2]
    if arguments[0] == "--samples":
        Meter.samples = int(arguments[1])
        del arguments[:2]
    as_module = arguments[0] == "-m"
    sys.argv = arguments[1:] if as_module else arguments
    try:
        if as_module:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        if stop.code:
            raise
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_OF_RSS / 1e6
    whole = {"cpu_seconds": time.process_time(), "peak_mb": peak}
    Path(record).write_text(json.dumps({"process": whole, **Meter.record}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
