"""``SELFAUG_TARGET_KL=x``: alpha follows the measured KL toward x nats per aligned token.

At each log of the HF Trainer, with the ``selfaug/kl`` and ``selfaug/alpha`` that it shows (means over all processes and
over the steps since the log before):

    alpha <- alpha * clamp(KL / x, 1/2, 2) ** (1/2),    within a factor of 32 of the alpha that was given

On the model of docs/results.md the KL falls about as 1 / alpha, so the square root goes half of the way at once. Until
the first log, alpha is the one that was given. The rule reads nothing but the last of ``trainer.state.log_history``,
which the Trainer saves with its checkpoints and which all processes have: nothing else is to be saved, and no step
waits for the device.
"""

from __future__ import annotations

import math
from typing import Any

from ..config import SettingError

GAIN, MOST, RANGE = 0.5, 2.0, 32.0


def alpha(given: float, target: float, trainer: Any) -> float:
    """The alpha in force in the run of ``trainer``, which was ``given`` for its start.

    Raises:
        SettingError: there is no HF Trainer, or it logs nothing.
    """
    if trainer is None or str(getattr(trainer.args.logging_strategy, "value", trainer.args.logging_strategy)) == "no":
        found = "no HF Trainer calls the model" if trainer is None else 'logging_strategy is "no"'
        raise SettingError(
            f"SELFAUG_TARGET_KL sets alpha at each log of an HF Trainer, and {found}. Train with the HF Trainer or a "
            'subclass, with logging_strategy="steps"; or unset SELFAUG_TARGET_KL and give SELFAUG_ALPHA alone.'
        )
    for entry in reversed(trainer.state.log_history):
        if "selfaug/kl" in entry and "selfaug/alpha" in entry:
            return following(float(entry["selfaug/alpha"]), float(entry["selfaug/kl"]), given, target)
    return given


def following(alpha: float, kl: float, given: float, target: float) -> float:
    """The alpha after an interval with this ``alpha`` and a mean KL of ``kl`` nats per aligned token."""
    if not math.isfinite(kl):
        return alpha
    factor = math.pow(min(max(kl / target, 1 / MOST), MOST), GAIN)
    return min(max(alpha * factor, given / RANGE), given * RANGE)
