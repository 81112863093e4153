"""``SELFAUG_TARGET_KL=x``: alpha follows the measured KL toward x nats per aligned token.

At each log of the HF Trainer, with the ``selfaug/kl`` and ``selfaug/alpha`` that it shows (means over all processes and
over the n optimizer steps since the log before):

    alpha <- alpha * clamp(KL / x, 1/2, 2) ** min(1, n / 20),    within a factor of 32 of the alpha that was given

So 20 steps double or halve alpha at the most, however often the Trainer logs: weights take some ten steps to answer to
another alpha, and a faster rule swings. Until the first log, alpha is the one that was given. The rule reads nothing
but ``trainer.state.log_history``, which the Trainer saves with its checkpoints and which all processes have: nothing
else is to be saved, and no step waits for the device.
"""

from __future__ import annotations

import math
from typing import Any

from ..config import SettingError
from .runs import PerRun

STEPS, MOST, RANGE = 20, 2.0, 32.0


class _Start:
    """The alpha that was given for the start of one run."""

    alpha: float | None = None


_STARTS = PerRun(_Start)


def check(trainer: Any) -> None:
    """Make sure that the run of ``trainer`` logs before it ends, so that alpha can move.

    Raises:
        SettingError: there is no HF Trainer, or no log comes before the last step.
    """
    found = "no HF Trainer calls the model" if trainer is None else _without_logs(trainer)
    if found:
        raise SettingError(
            f"SELFAUG_TARGET_KL sets alpha at each log of an HF Trainer, and {found}. Train with the HF Trainer or a "
            'subclass, with logging_strategy="steps" and a logging_steps of 10 or so; or unset SELFAUG_TARGET_KL and '
            "give SELFAUG_ALPHA alone. No step was made."
        )


def _without_logs(trainer: Any) -> str:
    """Why no log of the loss comes before the last step; empty if one does."""
    strategy = str(getattr(trainer.args.logging_strategy, "value", trainer.args.logging_strategy))
    if strategy == "no":
        return 'logging_strategy is "no"'
    last, steps = int(trainer.state.max_steps), int(getattr(trainer.state, "logging_steps", 0) or 0)
    if strategy == "steps" and steps >= last and not trainer.args.logging_first_step:
        return f"the first log comes at step {steps} (logging_steps) of {last}"
    if strategy == "epoch" and trainer.state.num_train_epochs <= 1:
        return 'logging_strategy is "epoch", with one epoch'
    return ""


def alpha(given: float, target: float, trainer: Any) -> float:
    """The alpha in force in the run of ``trainer``, which was ``given`` for its start: what is given later, as by a
    callback, has no effect.
    """
    start = _STARTS.of_owner(trainer.state)
    given = start.alpha = given if start.alpha is None else start.alpha
    logs = (entry for entry in reversed(trainer.state.log_history) if "selfaug/kl" in entry)
    last = next(logs, None)
    if last is None:
        return given
    steps = int(last["step"]) - int(next(logs, {"step": 0})["step"])
    return following(float(last["selfaug/alpha"]), float(last["selfaug/kl"]), steps, given, target)


def following(alpha: float, kl: float, steps: int, given: float, target: float) -> float:
    """The alpha after so many optimizer ``steps`` with this ``alpha`` and a mean ``kl`` in nats per aligned token."""
    if not math.isfinite(kl):
        return alpha
    factor = math.pow(min(max(kl / target, 1 / MOST), MOST), min(1.0, steps / STEPS))
    return min(max(alpha * factor, given / RANGE), given * RANGE)
