"""The training run around a step: the HF Trainer's call, the logs, and the warnings.

    attach      the Trainer's methods with SelfAug around them; the call of the Trainer that a step is a part of
    metrics     both terms in the Trainer's logs
    bypass      warnings that training goes past SelfAug
    announce    the lines that a run prints at its first step
    anchors     SELFAUG_ANCHORS: what a row without labels weighs
    turns       SELFAUG_EVERY: which micro-batches have the term
    controller  SELFAUG_TARGET_KL: the alpha that follows the measured KL
    runs        what is remembered for one run

A step calls :func:`.attach.to_trainer`, :func:`.attach.kept_labels`, :func:`.attach.current_call`, :func:`.bypass.of`,
:func:`controlled`, :func:`has_term`, :func:`anchor_tokens` and :func:`record`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import config
from ..eager import eager
from ..positions import Selection
from ..reference import Reference
from . import anchors, announce, attach, bypass, controller, metrics, turns


@eager
def controlled(model: Any, settings: config.Settings) -> config.Settings:
    """The settings for this call of ``model``: with the alpha that follows SELFAUG_TARGET_KL, where it is set.

    Raises:
        SettingError: there is a target for the KL, and no HF Trainer logs before the last step.
    """
    if settings.target_kl is None or not model.training:
        return settings
    call = attach.current_call()
    trainer = None if call is None else call.trainer
    controller.check(trainer)
    return attach.controlled(settings, trainer)


@eager
def has_term(model: Any, settings: config.Settings, nested: bool) -> bool:
    """Whether the term is computed in this call of ``model``, see :mod:`.turns`; always in an evaluation. To be asked
    once for each call that trains on labels. ``nested``: the call is within a forward of the same model.

    Raises:
        SettingError: the run is shorter than one block of micro-batches.
    """
    if settings.every == 1 or not model.training:
        return True
    call = attach.current_call()
    if call is not None:
        turns.check(call.trainer, settings.every)
    return turns.has_term(turns.called(model, nested) if call is None else call.micro_batch, settings.every)


@eager
def anchor_tokens() -> float | None:
    """How many supervised tokens an anchor weighs as much as in the global batch that this call is a part of; None if
    no trainer has collected one.
    """
    call = attach.current_call()
    return None if call is None else anchors.tokens(call.trainer.state)


@eager
def record(
    model: Any,
    settings: config.Settings,
    reference: Reference | None,
    nll_sum: Tensor,
    kl_sum: Tensor,
    chosen: Selection,
) -> None:
    """Note that this step went through SelfAug: for the Trainer's call around it, the logs, the warnings, and the lines
    that a run prints at its first step with the term.

    Args:
        reference: None in a micro-batch that SELFAUG_EVERY leaves without the term. Its tokens do not count for the
            mean of the KL.
        nll_sum: () nats, over the supervised tokens of this step.
        kl_sum: () nats, over all its aligned tokens, also where a sample estimates the sum. With SELFAUG_ALIGN, the sum
            of their mean squared differences.
    """
    call = attach.current_call()
    if call is not None:
        call.acted = True
    announce.unknown_padding(model, chosen.tail)
    if model.training:
        aligned, sums = len(chosen.all_aligned), metrics.RUNNING.of(model)
        looked = None if reference is None else aligned
        sums.add(nll_sum, chosen.supervised, kl_sum, looked, settings.alpha, settings.measure)
        if reference is not None:
            announce.first_step(model, settings, reference, kl_sum, aligned)
        if settings.anchors:
            bypass.of(model).count_anchors(chosen, settings)
        if chosen.supervised:
            bypass.of(model).count_aligned(chosen, settings, None if call is None else call.trainer)
