"""One call of a wrapped ``forward``: decide whether SelfAug acts, and add its term to the loss."""

from __future__ import annotations

import os
import weakref
from typing import Any, Callable

import torch
from torch import Tensor, nn
from transformers.utils import logging

from . import calls, config, loss, metrics, positions, runs, sample, trainers, unpatched, watch
from . import labels as label_forms
from .eager import eager, eager_around
from .outputs import SelfAugOutput, output
from .reference import Reference, guards, reference_of, switch

logger = logging.get_logger("transformers.selfaug")

_FRAME = "_selfaug_frame"
_PAST = "the model was called with labels and a filled key-value cache, which no reference pass can share"
_WHOLE = "Give each process whole sequences, with labels that are not shifted"
_NO_PAST = "Call the model without past_key_values where it trains"


@eager_around
def run(model: Any, forward: Callable[..., Any], stock: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``forward(model, *args, **kwargs)`` with ``alpha * KL`` added to its loss if LoRA trains on labels."""
    trainers.attach()
    call = calls.by_name(forward, model, args, kwargs)
    step = trainers.current()
    if stock:
        call = label_forms.without_ignored(model, call)
    labels = label_forms.given(call)
    if labels is None and step is not None and step.keeps_labels:
        labels = step.labels
    settings = config.read(model.config)
    if labels is None or not settings.enabled or settings.alpha == 0:
        return forward(model, *args, **kwargs)
    reference = reference_of(model, settings)
    if reference is None:
        if vars(model).get("_is_replica") and switch.has_lora_on(model):
            watch.tell_replica(model, settings.strict)
        elif stock := guards.unpatched_peft(model):
            reason, do = unpatched.why(stock)
            what = f"SelfAug is on but could not act: peft's LoRA layers are not patched: {reason}."
            watch.of(model).say(what, settings.strict, do)
        return forward(model, *args, **kwargs)
    split = label_forms.split_by(call)
    if split is not None:
        watch.of(model).tell(f"{split}, and the KL's mean needs the whole one", forward, settings.strict, _WHOLE)
        return forward(model, *args, **kwargs)
    if calls.has_past(call):
        watch.of(model).tell(_PAST, forward, settings.strict, _NO_PAST)
        return forward(model, *args, **kwargs)
    if stock and model.training and call.get("labels") is not None and calls.is_plain(model, forward, call):
        return _fused(model, call, settings, reference)
    return _around(model, forward, call, labels, settings, reference, args, kwargs)


@eager_around
def _fused(model: Any, call: dict[str, Any], settings: config.Settings, reference: Reference) -> SelfAugOutput:
    """Stock ``forward`` re-expressed from hidden states: both terms in chunks, and logits only for a caller who reads
    them.
    """
    chosen = _select(model, call, call["labels"], settings)
    arguments = calls.decoder_arguments(model.model, call)
    # first, while no activations of the tuned pass are kept
    states = reference.states(arguments, chosen)
    decoded = model.model(**arguments)
    hidden = decoded[0]
    terms = _terms(model, hidden, reference, states, chosen, settings)
    total = terms.total / positions.divisor(call.get("num_items_in_batch"), chosen.counted, hidden.device)
    _acted(model, settings, reference, terms.nll_sum, terms, chosen)
    watch.of(model).made(total, settings.strict)

    def logits() -> Tensor:
        made = model.lm_head(hidden)
        return made if hasattr(model, "loss_function") else made.float()  # forward upcasts until transformers 4.45

    return output(total, logits, decoded)


@eager_around
def _around(
    model: Any,
    forward: Callable[..., Any],
    call: dict[str, Any],
    labels: Tensor,
    settings: config.Settings,
    reference: Reference,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """``forward`` as it is, whoever wrote it; the term is made from the decoder call inside. It is added to the loss
    that ``forward`` returns or, where the trainer does not use that, to the trainer's.
    """
    outer = vars(model).get(_FRAME)
    frame = vars(model)[_FRAME] = _Frame()
    try:
        with calls.decoder_calls(model.model) as decoded:
            outputs = forward(model, *args, **kwargs)
    finally:
        if outer is None:
            del vars(model)[_FRAME]
        else:
            vars(model)[_FRAME] = outer
    if frame.acted:
        _mark_acted(model)
        return outputs

    step = trainers.current()
    log_probs = getattr(outputs, "log_probs", None)  # TRL's fused head, since 1.15
    if log_probs is not None and step is not None and step.labels is None:
        return outputs  # DPO, KTO, GRPO: log-probabilities for an objective of another kind
    collects = step is not None and step.collects
    owed = step if collects and (log_probs is not None or call.get("labels") is None) else None
    stock_loss = outputs[0] if isinstance(outputs, tuple) else getattr(outputs, "loss", None)
    if not decoded or not (owed or isinstance(stock_loss, Tensor)):
        what = "without calling the decoder" if not decoded else "without a loss that the term could be added to"
        watch.of(model).tell(f"a forward returned {what}", forward, settings.strict)
        return outputs

    arguments, hidden = decoded[-1]
    num_items = owed.num_items if owed else call.get("num_items_in_batch")
    kept = call.get("logits_to_keep", call.get("num_logits_to_keep", 0))
    labels, targets = label_forms.both_forms(labels, call, kept, hidden.shape[1])
    chosen = _select(model, {**call, **arguments, "num_items_in_batch": num_items}, labels, settings, targets)
    states = reference.states(arguments, chosen)
    terms = _terms(model, hidden, reference, states, positions.aligned_only(chosen), settings)
    if owed:
        _acted(model, settings, reference, _nll_sum(outputs, chosen, kept), terms, chosen)
        owed.owe(terms.total, chosen)
        return outputs
    divisor = positions.divisor(num_items, chosen.counted, stock_loss.device)
    stock_loss = positions.without_nan(stock_loss, chosen.supervised)
    _acted(model, settings, reference, (stock_loss.detach().mean() * divisor).reshape(()), terms, chosen)
    total = stock_loss + (terms.total.to(stock_loss.device) / divisor).to(stock_loss)
    watch.of(model).made(total, settings.strict)
    if isinstance(outputs, tuple):
        return (total, *outputs[1:])
    outputs.loss = total
    return outputs


@torch.no_grad()
def _nll_sum(outputs: Any, chosen: positions.Selection, kept: int | Tensor) -> Tensor:
    """For the logs: NLL summed over supervised tokens, from what a forward without a loss has computed anyway, at the
    positions ``kept`` (its ``logits_to_keep``).
    """
    log_probs = getattr(outputs, "log_probs", None)
    if log_probs is not None:
        return -log_probs.float().sum()
    logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
    targets = positions.kept_targets(chosen, len(logits), kept).flatten().to(logits.device)
    supervised = targets != positions.IGNORE_INDEX
    return nn.functional.cross_entropy(logits.flatten(0, 1)[supervised].float(), targets[supervised], reduction="sum")


class _Frame:
    """One call of a foreign ``forward``, and whether a wrapped one inside it has already added the term."""

    acted = False


@eager
def _acted(
    model: Any,
    settings: config.Settings,
    reference: Reference,
    nll_sum: Tensor,
    terms: loss.Terms,
    chosen: positions.Selection,
) -> None:
    """Book one micro-batch: for the logs, for the forwards around this one, for the trainer."""
    _mark_acted(model)
    if model.training:
        metrics.RUNNING.of(model).add(nll_sum, chosen.supervised, terms.kl_sum, chosen.aligned, settings.alpha)
        _announce(settings, model, reference, terms.kl_sum, chosen.aligned)
        if chosen.supervised:
            step, rows = trainers.current(), chosen.rows
            trainer = None if step is None else step.trainer
            watch.of(model).aligns(rows, len(chosen.all_aligned), settings.positions, trainer, settings.strict)


@eager
def _mark_acted(model: Any) -> None:
    for record in (vars(model).get(_FRAME), trainers.current()):
        if record is not None:
            record.acted = True


@eager
def _select(
    model: Any, call: dict[str, Any], labels: Tensor, settings: config.Settings, targets: Tensor | None = None
) -> positions.Selection:
    share = settings.sample if model.training else 1.0  # an evaluation is exact, and leaves the random state alone
    chosen = positions.select(
        labels,
        call.get("attention_mask"),
        call.get("position_ids"),
        settings.positions,
        settings.reduction,
        divided_by_batch=call.get("num_items_in_batch") is not None,
        share=share,
        generator=sample.step_generator(model) if share < 1 else None,
        input_ids=_token_ids(call),
        pad_tokens=_pad_tokens(model) if call.get("input_ids") is not None else (),
        targets=targets,
    )
    if chosen.maybe_padding > 1 and model not in _TOLD_OF_PADDING:
        _TOLD_OF_PADDING.add(model)
        logger.warning(
            f"SelfAug cannot tell padding: the model is called without attention_mask, and a row ends in "
            f"{chosen.maybe_padding} equal tokens without labels, none of them a pad token that the model's config or "
            "the trainer's tokenizer names. They are aligned as input. Pass attention_mask, or set "
            "model.config.pad_token_id, if they are padding."
        )
    return chosen


_TOLD_OF_PADDING: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _token_ids(call: dict[str, Any]) -> Tensor | None:
    """(B, T) the tokens; of embeddings, 1 where the vector is that of the row's last position."""
    embeddings = call.get("inputs_embeds")
    if call.get("input_ids") is not None or embeddings is None or call.get("attention_mask") is not None:
        return call.get("input_ids")
    return (embeddings.detach() == embeddings.detach()[:, -1:]).all(-1).long()


def _pad_tokens(model: Any) -> set[int]:
    """The pad tokens that the model's configs and the trainer's tokenizer name."""
    step = trainers.current()
    named = [getattr(config, "pad_token_id", None) for config in (model.config, getattr(model, "generation_config", 0))]
    named += step.pad_tokens if step is not None else []
    return {token for token in named if isinstance(token, int)}


@eager
def _terms(
    model: Any,
    hidden: Tensor,
    reference: Reference,
    states: Tensor,
    chosen: positions.Selection,
    settings: config.Settings,
) -> loss.Terms:
    """The sums of one micro-batch, from the decoder's (B, T, H) hidden states and the reference's (A, H) ``states``."""
    return loss.chunked_loss(
        hidden.flatten(0, 1)[chosen.index.to(hidden.device)],
        states,
        chosen.targets,
        settings.alpha * chosen.kl_weight,
        model.lm_head,
        reference.head,
        settings.chunk_size or loss.auto_chunk_size(model.config.vocab_size, hidden.device),
        settings.direction,
    )


class _Announced:
    """Whether a run has said that SelfAug is on."""

    yet = False


_ANNOUNCED = runs.PerRun(_Announced)


def _announce(settings: config.Settings, model: Any, reference: Reference, kl_sum: Tensor, aligned: int) -> None:
    announced = _ANNOUNCED.of(model)
    if announced.yet:
        return
    announced.yet = True
    step = trainers.current()
    resumed = 0 if step is None else step.trainer.state.global_step
    if settings.reference == "start" and resumed:
        raise guards.ReferenceModelError(
            f"SELFAUG_REFERENCE=start in a run that was resumed at step {resumed}",
            "the weights at the first step of this process are not those that training started from",
            "set SELFAUG_REFERENCE=base, or start anew",
        )
    if os.environ.get("RANK", "0") != "0":
        return
    logger.warning(
        f"SelfAug is on: loss = NLL + {settings.alpha:g} * KL at {settings.positions} positions, "
        f"{reference} (SELFAUG=0 switches it off)."
    )
    starts_apart = settings.reference is None and not resumed and not kl_sum.is_meta and float(kl_sum) > 1e-5 * aligned
    loaded = guards.had_weights(model) if starts_apart else []
    if loaded:
        logger.warning(
            f"SelfAug: adapter {', '.join(loaded)} had weights before the first step, and the reference is the model "
            "without them: the KL begins above 0 and draws the adapter back. To hold on to the model as it is now, set "
            "SELFAUG_REFERENCE=start; if the model without the adapter is meant (a run resumed by hand), set "
            "SELFAUG_REFERENCE=base."
        )
