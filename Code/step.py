"""One step: a call of a model's ``forward`` on labels, to whose loss ``alpha * KL`` is added.

:func:`run` decides whether SelfAug acts. Then :func:`_fused` stands for transformers' own forward, and :func:`_around`
lets any other forward run as it is. Both select positions, take the reference's states there, and compute the terms.
"""

from __future__ import annotations

import weakref
from typing import Any, Callable

import torch
from torch import Tensor, nn

from . import calls, config, copies, family, features, loss, sample, trainers, unpatched
from . import labels as labels_of
from .eager import eager, eager_around
from .outputs import SelfAugOutput, output
from .positions import Selection, select
from .reference import Reference, reference_of
from .trainers import attach, bypass, runs

Draw = Callable[[Tensor, Selection, Tensor], "tuple[Selection, Tensor]"]
_OTHER_TOKENS = (
    "a compute_loss keeps the labels from the model, and calls the model with other tokens than it was given, whose "
    "labels SelfAug does not know",
    "Pass labels to the model, or call it with the tokens as they come",
)
_ACTED = "_selfaug_acted"  # on a model while a foreign forward runs: whether a wrapped forward inside it has acted


@eager_around
def run(model: Any, forward: Callable[..., Any], stock: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``forward(model, *args, **kwargs)`` with ``alpha * KL`` added to its loss if LoRA trains on labels.

    Args:
        stock: ``forward`` is transformers' own.
    """
    attach.to_trainer()
    call = calls.by_name(forward, model, args, kwargs)
    if stock:
        call = labels_of.without_ignored(model, call)
    labels = labels_of.given(call)
    if labels is None:
        labels = attach.kept_labels(call.get("input_ids"))
    settings = config.read(model.config)
    if not settings.enabled or settings.alpha == 0 or (labels is None and not attach.keeps_other_labels()):
        return forward(model, *args, **kwargs)
    reference = reference_of(model, settings, runs.current)
    if reference is None:
        unpatched.check_peft(model, settings)
        return forward(model, *args, **kwargs)
    obstacle = calls.obstacle(call)
    if labels is None or obstacle is not None:
        reason, do = obstacle or _OTHER_TOKENS
        bypass.of(model).could_not_act(reason, forward, settings.strict, do)
        return forward(model, *args, **kwargs)
    if stock and not family.traits(model).counts:  # then the term is a mean, too
        call.pop("num_items_in_batch", None)
    settings = trainers.controlled(model, settings)
    if not trainers.has_term(model, settings, nested=_ACTED in vars(model)):
        reference = None
    if stock and model.training and call.get("labels") is not None and calls.is_plain(model, call):
        return _fused(model, call, settings, reference)
    return _around(model, forward, stock, call, labels, settings, reference, args, kwargs)


@eager_around
def _fused(model: Any, call: dict[str, Any], settings: config.Settings, reference: Reference | None) -> SelfAugOutput:
    """Transformers' own forward, made again from hidden states: both terms in chunks, and logits only for a caller who
    reads them. Without a ``reference``, the NLL alone.
    """
    chosen = _select(model, call, call["labels"], call["labels"].shape[1], settings)
    decoder = family.decoder_of(model)
    arguments = calls.decoder_arguments(decoder, call)
    # before the tuned pass, whose activations would be alive during this one
    with features.recorded(model, settings, reference) as base:
        chosen, states, draw = _states(model, reference, arguments, chosen, settings)
    with features.recorded(model, settings, reference) as tuned:
        decoded = decoder(**arguments)
    hidden = decoded[0]
    chosen, states = draw(hidden, chosen, states)
    terms = _terms(model, hidden, reference, states, chosen, settings, tuned, base)
    total = terms.total / chosen.divisor(call.get("num_items_in_batch"), hidden.device)
    _record(model, settings, reference, terms.nll_sum, terms, chosen)
    bypass.of(model).returned(total, settings.strict)

    def logits() -> Tensor:
        computed: Tensor = family.head_of(model)(hidden)
        # until transformers 4.45 forward upcasts
        return computed if hasattr(model, "loss_function") else computed.float()

    return output(total, logits, decoded, family.traits(model).fields)


@eager_around
def _around(
    model: Any,
    forward: Callable[..., Any],
    stock: bool,
    call: dict[str, Any],
    labels: Tensor,
    settings: config.Settings,
    reference: Reference | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """``forward`` as it is, whoever wrote it. The term comes from the decoder call inside. It is added to the loss that
    ``forward`` returns or, where the trainer does not use that loss, to the trainer's. Without a ``reference`` it is 0.
    """
    with features.recorded(model, settings, reference) as tuned:
        outputs, decoder_call, acted, head_outputs = _observed(model, forward, args, kwargs)
    if acted:
        return outputs
    if not stock and _changes_logits(model, outputs, head_outputs):
        reason = "a forward does something to the logits that transformers' own does not, and the KL would not see it"
        do = "Have the head make the logits as they are (a head of the class's own), or leave them alone"
        bypass.of(model).could_not_act(reason, forward, settings.strict, do)
        return outputs
    trainer_call = attach.current_call()
    log_probs = getattr(outputs, "log_probs", None)  # TRL's fused head, since 1.15
    if log_probs is not None and trainer_call is not None and trainer_call.labels is None:
        return outputs  # DPO, KTO, GRPO: log-probabilities for an objective of another kind
    takes_term = trainer_call is not None and trainer_call.takes_term
    receiver = trainer_call if takes_term and (log_probs is not None or call.get("labels") is None) else None
    stock_loss: Any = outputs[0] if isinstance(outputs, tuple) else getattr(outputs, "loss", None)
    if decoder_call is None or not (receiver or isinstance(stock_loss, Tensor)):
        lack = "calling the decoder" if decoder_call is None else "a loss that the term could be added to"
        bypass.of(model).could_not_act(f"a forward returned without {lack}", forward, settings.strict)
        return outputs

    arguments, hidden = decoder_call
    num_items = receiver.expected_num_items if receiver else call.get("num_items_in_batch")
    call = {**call, **arguments, "num_items_in_batch": num_items}
    chosen = _select(model, call, labels, hidden.shape[1], settings)
    with features.recorded(model, settings, reference) as base:
        aligned, states, draw = _states(model, reference, arguments, chosen.aligned_only(), settings)
    aligned, states = draw(hidden, aligned, states)
    terms = _terms(model, hidden, reference, states, aligned, settings, tuned, base)
    if receiver:
        _record(model, settings, reference, _nll_sum(outputs, chosen, call), terms, chosen)
        receiver.leave_term(terms.total, chosen)
        return outputs
    divisor = chosen.divisor(num_items, stock_loss.device)
    stock_loss = chosen.without_nan(stock_loss)
    _record(model, settings, reference, (stock_loss.detach().mean() * divisor).reshape(()), terms, chosen)
    total = stock_loss + (terms.total.to(stock_loss.device) / divisor).to(stock_loss)
    bypass.of(model).returned(total, settings.strict)
    if isinstance(outputs, tuple):
        return (total, *outputs[1:])
    outputs.loss = total
    return outputs


@eager_around
def _observed(
    model: Any, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, tuple[dict[str, Any], Tensor] | None, bool, list[tuple[torch.Size, Tensor]]]:
    """(what ``forward`` returns; arguments and hidden states (B, T, H) of its last decoder call, None if it made none;
    whether a wrapped forward inside has acted, as where one library's forward calls another's; what
    :func:`.calls.head_outputs` saw).
    """
    outer = vars(model).get(_ACTED)
    vars(model)[_ACTED] = False
    try:
        head = None if model in _SAME_LOGITS else model.get_output_embeddings()  # known: nothing is to be seen
        with calls.decoder_calls(family.decoder_of(model)) as decoder_calls, calls.head_outputs(head) as head_outputs:
            outputs = forward(model, *args, **kwargs)
    finally:
        acted = vars(model).pop(_ACTED)
        if outer is not None:
            vars(model)[_ACTED] = outer or acted
    return outputs, decoder_calls[-1] if decoder_calls else None, acted, head_outputs


def _changes_logits(model: Any, outputs: Any, head_outputs: list[tuple[torch.Size, Tensor]]) -> bool:
    """Whether a forward that is not transformers' own does more to logits than that one. Asked until it does not."""
    logits = getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor) or [shape for shape, _ in head_outputs] != [logits.shape]:
        return False
    if family.changes_logits(model, logits[0, -1], head_outputs[0][1]):
        return True
    _SAME_LOGITS.add(model)
    return False


_SAME_LOGITS: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@torch.no_grad()
def _nll_sum(outputs: Any, chosen: Selection, call: dict[str, Any]) -> Tensor:
    """() nats, for the logs: the NLL of the supervised tokens, from the outputs of a forward that computed no loss."""
    log_probs = getattr(outputs, "log_probs", None)
    if log_probs is not None:
        nll: Tensor = -log_probs.float().sum()
        return nll
    logits = outputs[0] if isinstance(outputs, tuple) else outputs.logits
    next_labels = chosen.next_labels_at(labels_of.logits_to_keep(call)).flatten()
    supervised = (next_labels != labels_of.IGNORE_INDEX).nonzero().squeeze(-1)
    index, next_labels = copies.on_device(logits.device, supervised, next_labels[supervised])
    return nn.functional.cross_entropy(logits.flatten(0, 1)[index].float(), next_labels, reduction="sum")


@eager
def _record(
    model: Any,
    settings: config.Settings,
    reference: Reference | None,
    nll_sum: Tensor,
    terms: loss.Terms,
    chosen: Selection,
) -> None:
    """Note that this step went through SelfAug: for a foreign forward around it, and for the training run."""
    if _ACTED in vars(model):
        vars(model)[_ACTED] = True
    trainers.record(model, settings, reference, nll_sum, terms.kl_sum, chosen)


@eager
def _select(model: Any, call: dict[str, Any], labels: Tensor, total: int, settings: config.Settings) -> Selection:
    """The positions of this step, of the (B, ``total``) batch in ``call``, with alpha in their weights, and with the
    weight of the micro-batches that SELFAUG_EVERY leaves without the term.
    """
    labels, next_labels = labels_of.at_all_positions(labels, call, total)
    chosen = select(
        labels,
        call.get("attention_mask"),
        call.get("position_ids"),
        settings.positions,
        settings.reduction,
        divided_by_batch=call.get("num_items_in_batch") is not None,
        input_ids=_token_ids(call),
        pad_tokens=_pad_tokens(model) if call.get("input_ids") is not None else (),
        next_labels=next_labels,
        anchors=settings.anchors and model.training,
        anchor_tokens=trainers.anchor_tokens() if settings.anchors else None,
    )
    return chosen.weighted(settings.alpha * (settings.every if model.training else 1))


@eager_around
def _states(
    model: Any, reference: Reference | None, arguments: dict[str, Any], chosen: Selection, settings: config.Settings
) -> tuple[Selection, Tensor, Draw]:
    """(the positions, the reference's states there, the draw that is left once the tuned hidden states are known). A
    uniform sample is drawn at once, so that only its states are kept; a sample by shift needs them at all positions.
    Without a ``reference`` no position is aligned.
    """
    if reference is None:
        return sample.without_aligned(chosen), torch.zeros(0), _no_states
    if settings.sample == 1 or not model.training:  # an evaluation is exact, and leaves the random state alone
        return chosen, reference.states(arguments, chosen), _keep_all
    generator = sample.step_generator(model)
    if settings.sample_by == "uniform":
        chosen = sample.sampled(chosen, settings.sample, generator)
        return chosen, reference.states(arguments, chosen), _keep_all

    def by_shift(hidden: Tensor, chosen: Selection, states: Tensor) -> tuple[Selection, Tensor]:
        tuned = hidden.flatten(0, 1)[chosen.beside(hidden).index[: chosen.aligned]]
        scores = sample.shift(tuned, states) * chosen.kl_weight
        drawn, chances = sample.by_score(scores, settings.sample, generator)
        return sample.taken(chosen, drawn, chances), states[copies.on_device(states.device, drawn)[0]]

    return chosen, reference.states(arguments, chosen), by_shift


def _keep_all(_: Tensor, chosen: Selection, states: Tensor) -> tuple[Selection, Tensor]:
    return chosen, states


def _no_states(hidden: Tensor, chosen: Selection, _: Tensor) -> tuple[Selection, Tensor]:
    return chosen, hidden.detach().new_zeros(0, hidden.shape[-1])


def _token_ids(call: dict[str, Any]) -> Tensor | None:
    """(B, T) token ids. For embeddings without a mask: 1 where the embedding equals that of the row's last position."""
    ids: Tensor | None = call.get("input_ids")
    embeddings = call.get("inputs_embeds")
    if ids is not None or embeddings is None or call.get("attention_mask") is not None:
        return ids
    equal: Tensor = (embeddings.detach() == embeddings.detach()[:, -1:]).all(-1)
    return equal.long()


def _pad_tokens(model: Any) -> set[int]:
    """The pad tokens that the model's configs and the trainer's tokenizer name."""
    trainer_call = attach.current_call()
    configs = (model.config, getattr(model, "generation_config", None))
    tokens = [getattr(config, "pad_token_id", None) for config in configs]
    tokens += trainer_call.pad_tokens if trainer_call is not None else []
    return {token for token in tokens if isinstance(token, int)}


@eager
def _terms(
    model: Any,
    hidden: Tensor,
    reference: Reference | None,
    states: Tensor,
    chosen: Selection,
    settings: config.Settings,
    tuned: features.Recorded,
    base: features.Recorded,
) -> loss.Terms:
    """The sums of one micro-batch, from the decoder's (B, T, H) hidden states and the reference's (A, H) ``states``, or
    from what was recorded in both passes.
    """
    in_logits = chosen if settings.align == "logits" else sample.without_aligned(chosen)
    placed = in_logits.beside(hidden)
    head = family.head_of(model)
    terms = loss.chunked_loss(
        hidden.flatten(0, 1)[placed.index],
        states[: in_logits.aligned],
        placed.next_labels,
        placed.weights,
        head,
        head if reference is None else reference.head,
        settings.chunk_size or loss.auto_chunk_size(family.text_config(model).vocab_size, hidden.device),
        settings.direction,
    )
    return terms if settings.align == "logits" else features.with_mse(terms, tuned, base, chosen, settings.align)
