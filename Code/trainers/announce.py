"""The lines that a run prints at its first step, in transformers' log: that SelfAug is on, and warnings about the
reference and about padding.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers import __version__ as VERSION
from transformers.utils import logging

from .. import __version__, config, family, receipt
from ..reference import Reference, guards
from . import attach, runs

logger = logging.get_logger("transformers.selfaug")


class _Announcement:
    """Whether a run has said that SelfAug is on."""

    made = False


_ANNOUNCEMENTS = runs.PerRun(_Announcement)
_TOLD_OF_PADDING: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def first_step(model: Any, settings: config.Settings, reference: Reference, kl_sum: Tensor, aligned: int) -> None:
    """At the first step of a run: say that SelfAug is on, and warn of an adapter that had weights before.

    Args:
        kl_sum: () nats, over the ``aligned`` tokens of this step; with SELFAUG_ALIGN a sum of squared differences.

    Raises:
        ReferenceModelError: SELFAUG_REFERENCE=start in a run that was resumed.
    """
    announcement = _ANNOUNCEMENTS.of(model)
    if announcement.made:
        return
    announcement.made = True
    call = attach.current_call()
    resumed_at = 0 if call is None else call.trainer.state.global_step
    if settings.reference == "start" and resumed_at:
        raise guards.ReferenceModelError(
            f"SELFAUG_REFERENCE=start in a run that was resumed at optimizer step {resumed_at}",
            "the weights at the first step of this process are not those that training started from",
            "set SELFAUG_REFERENCE=base, or start anew",
        )
    if os.environ.get("RANK", "0") != "0":
        return
    logger.warning(
        f"SelfAug is on: loss = NLL + {settings.alpha:g} * {_term(settings)} at {settings.positions} positions, "
        f"{reference} (SELFAUG=0 switches it off)."
        f"{_releases(model)}{_not_default(model, settings)}"
    )
    if call is not None and attach.hides_num_items(call.trainer):
        logger.warning(
            "SelfAug: compute_loss_func takes num_items_in_batch in **kwargs, if at all, so its loss is taken for a "
            "mean over the micro-batch. If it divides by num_items_in_batch, give it a parameter of that name "
            "(functools.wraps shows that of the function inside)."
        )
    if settings.reference is not None or resumed_at or kl_sum.is_meta or float(kl_sum) <= 1e-5 * aligned:
        return
    loaded = guards.had_weights(model)
    if loaded:
        logger.warning(
            f"SelfAug: adapter {', '.join(loaded)} had weights before the first step, and the reference is the model "
            f"without them: the {settings.measure} begins above 0 and draws the adapter back. To hold on to the model "
            "as it is now, set SELFAUG_REFERENCE=start; if the model without the adapter is meant (a run resumed by "
            "hand), set SELFAUG_REFERENCE=base."
        )


def unknown_padding(model: nn.Module, tail: int) -> None:
    """Warn, once for each model, that ``tail`` equal tokens at the end of a row may be padding.

    Args:
        tail: see :func:`.positions.unexplained_tail`; a single token is no sign of padding.
    """
    if tail > 1 and model not in _TOLD_OF_PADDING:
        _TOLD_OF_PADDING.add(model)
        logger.warning(
            f"SelfAug cannot tell padding: the model is called without attention_mask, and a row ends in {tail} equal "
            "tokens without labels, none of them a pad token that the model's config or the trainer's tokenizer names. "
            "They are aligned as input. Pass attention_mask, or set model.config.pad_token_id, if they are padding."
        )


def _term(settings: config.Settings) -> str:
    return "KL" if settings.align == "logits" else f"{settings.measure} of {settings.align} (SELFAUG_ALIGN)"


def _releases(model: Any) -> str:
    """A sentence on the releases of SelfAug and of the patched packages, each with the trust in its file."""
    name = family.name_of(model)
    targets = [(f"transformers:{name}", f"{name} of transformers {VERSION}")] if name else []
    if "peft" in sys.modules:
        targets.append(("peft:lora", f"peft {getattr(sys.modules['peft'], '__version__', '')}"))
    said = [] if name else [f"{type(model).__name__} of {type(model).__module__}, a copy of a patched file"]
    said += [f"{name} ({receipt.trust(target)})" for target, name in targets]
    proved = f", with torch {torch.__version__}" if any(receipt.is_proved_here(target) for target, _ in targets) else ""
    return f" SelfAug {__version__}, {', '.join(said)}{proved}."


def _not_default(model: Any, settings: config.Settings) -> str:
    """A sentence on variables that are no setting, and one on the settings that are not at their defaults; nothing if
    there are none.
    """
    ignored = config.ignored()
    no_setting = f" Ignored, no setting: {', '.join(ignored)}." if ignored else ""
    sources = config.sources(model.config)
    given = [f"{source}={config.shown(key, getattr(settings, key))}" for key, source in sources.items()]
    return no_setting + (f" Not by default: {', '.join(given)}." if given else "")
