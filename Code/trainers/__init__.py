"""The training run around a step: the HF Trainer's call, the logs, and the warnings.

    attach      the Trainer's methods with SelfAug around them; the call of the Trainer that a step is a part of
    metrics     both terms in the Trainer's logs
    bypass      warnings that training goes past SelfAug
    announce    the lines that a run prints at its first step
    runs        what is remembered for one run

A step calls :func:`.attach.to_trainer`, :func:`.attach.kept_labels`, :func:`.attach.current_call`, :func:`.bypass.of`
and :func:`record`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import config
from ..eager import eager
from ..positions import Selection
from ..reference import Reference
from . import announce, attach, bypass, metrics


@eager
def record(
    model: Any, settings: config.Settings, reference: Reference, nll_sum: Tensor, kl_sum: Tensor, chosen: Selection
) -> None:
    """Note that a step has its term: for the Trainer's call around it, the logs, the warnings, and the lines that a run
    prints at its first step.

    Args:
        nll_sum: () nats, over the supervised tokens of this step.
        kl_sum: () nats, over all its aligned tokens, also where a sample estimates the sum.
    """
    call = attach.current_call()
    if call is not None:
        call.acted = True
    announce.unknown_padding(model, chosen.tail)
    if model.training:
        metrics.RUNNING.of(model).add(nll_sum, chosen.supervised, kl_sum, len(chosen.all_aligned), settings.alpha)
        announce.first_step(model, settings, reference, kl_sum, len(chosen.all_aligned))
        if chosen.supervised:
            bypass.of(model).count_aligned(chosen, settings, None if call is None else call.trainer)
