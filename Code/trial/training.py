"""Two optimiser steps of the HF Trainer: the KL is 0, then it is not, and both are logged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

from . import tiny
from .checks import Check, failed

NAME = "two steps of the Trainer"
EXPECTED = "selfaug/kl 0 in the first log, above 0 in the second"


def checks(cls: Any) -> Iterator[Check]:
    """A LoRA run of two steps. Where the Trainer itself does not work (no accelerate, or an unfit one), nothing
    is checked, and the answer says so.
    """
    try:
        arguments = _arguments()
    except Exception as error:
        text = str(error).strip().splitlines()[0][:200]
        yield Check(NAME, True, EXPECTED, f"left out: transformers' Trainer does not work here: {text}")
        return
    try:
        with tiny.settings():
            kl = _logged(cls, arguments)
    except Exception as error:
        yield failed(NAME, EXPECTED, error)
        return
    ok = len(kl) == 2 and abs(kl[0]) < 1e-6 and kl[1] > 1e-6
    found = f"KL {', then '.join(f'{value:.2g}' for value in kl)}" if kl else "no selfaug/kl in the logs"
    yield Check(NAME, ok, EXPECTED, found)


def _arguments() -> Any:
    from transformers import Trainer, TrainingArguments  # noqa: F401

    return TrainingArguments(
        output_dir=tempfile.gettempdir(),  # nothing is written
        max_steps=2,
        per_device_train_batch_size=3,
        logging_steps=1,
        learning_rate=0.05,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )


def _logged(cls: Any, arguments: Any) -> list[float]:
    """``selfaug/kl`` of each log."""
    from transformers import Trainer
    from transformers.trainer_callback import PrinterCallback

    data = tiny.batch()
    rows = [{name: values[row] for name, values in data.items()} for row in range(3)] * 2
    trainer = Trainer(model=tiny.with_lora(tiny.base(cls), fresh=True), args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)  # prints each log
    trainer.train()
    return [float(log["selfaug/kl"]) for log in trainer.state.log_history if "selfaug/kl" in log]
