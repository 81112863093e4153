"""Loss, KL and every gradient of a step, against stock's own loss and ``alpha * KL`` by autograd.

What is wanted is made without SelfAug: the loss that stock ``forward`` returns for the same call (``SELFAUG=0``), and
the KL from full logits, in float64, against a copy of the model that never had LoRA.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable

import torch
from torch import Tensor

from .. import family
from ..calls import CACHES
from ..outputs import SelfAugOutput
from ..trainers import metrics
from . import tiny
from .checks import GRADIENT_TOLERANCE, LOSS_TOLERANCE, Check, failed, gradient_error, relative_error

ALPHA = 0.5


@dataclass(frozen=True)
class Case:
    """One way of calling a model in training.

    call: the arguments of the call; a function is called anew for each call, since a cache is written to.
    lora: options of ``LoraConfig``.
    prepare: what is done to the model first.
    num_items: the ``num_items_in_batch`` that the sum of the losses is divided by; None: the number of labels.
    lazy: whether the loss is made in chunks, and logits only for a caller who reads them.
    """

    name: str
    call: dict[str, Any]
    lora: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], None] = lambda model: None
    num_items: int | None = None
    lazy: bool = True


@dataclass
class Step:
    """What one call and its backward pass gave."""

    loss: Tensor
    gradients: dict[str, Tensor]
    kl: float  # nats per aligned token
    cached: list[int]  # lengths of the caller's caches afterwards
    lazy: bool = False
    drawn: bool = False  # whether random numbers were drawn


def cases(model: Any) -> Iterator[Case]:
    """The ways of calling ``model`` that its ``forward`` knows."""
    names, takes_any = _arguments(model)
    right = tiny.batch()
    yield Case("plain", tiny.batch("none"))
    yield Case("padded right", right)
    yield Case("padded left", tiny.batch("left"))
    yield Case("packed rows", tiny.packed())
    yield Case("dropout in LoRA", right, lora={"lora_dropout": 0.3, "target_modules": tiny.ATTENTION})
    yield Case("a forward of the user's own", right, prepare=_replace_forward, lazy=False)
    yield Case("a tuple", {**right, "return_dict": False}, lazy=False)
    for reentrant in (True, False):
        kind = "reentrant" if reentrant else "not reentrant"
        yield Case(f"checkpointing, {kind}", right, prepare=partial(_checkpoint, reentrant))
    if takes_any and "num_items_in_batch" not in names:
        counted = {**right, "num_items_in_batch": torch.tensor(31)}
        yield Case("num_items_in_batch", counted, num_items=31 if _counts(model, right, counted) else None)
    if "output_router_logits" in names:
        yield Case("output_router_logits", {**right, "output_router_logits": True}, lazy=False)
    kept = next((name for name in ("logits_to_keep", "num_logits_to_keep") if name in names), None)
    if kept:
        data = tiny.batch("none")
        yield Case(kept, {**data, kept: 8, "labels": data["labels"][:, -8:]}, lazy=False)
    for cache in _cache_names(model):
        call = {**right, cache: partial(_empty_cache, model), "use_cache": True}
        yield Case(f"an empty cache, {cache}", call)


def checks(cls: Any) -> Iterator[Check]:
    """Every case, and then what is no training step: an evaluation with the term, and a filled cache."""
    base = tiny.base(cls)
    for case in cases(base):
        name, expected = f"exact: {case.name}", "stock's loss + alpha * KL, and its gradient"
        try:
            yield _check(name, expected, base, case)
        except Exception as error:
            yield failed(name, expected, error)
    for name, expected, check in (
        ("KL of a new LoRA", "KL 0, and stock's loss", _of_a_new_lora),
        ("SELFAUG_EVAL=1", "stock's loss + alpha * KL in evaluation", _in_evaluation),
        ("a filled cache", "stock's loss, told as such, and the cache as stock leaves it", _filled_cache),
    ):
        try:
            yield Check(name, *check(base, expected))
        except Exception as error:
            yield failed(name, expected, error)


def _check(name: str, expected: str, base: Any, case: Case) -> Check:
    tuned = tiny.with_lora(base, **case.lora)
    case.prepare(tuned.get_base_model())
    with tiny.settings(SELFAUG_ALPHA=str(ALPHA)):
        ours = _step(tuned, case.call)
    wanted = _wanted(base, tuned, case)
    loss, kl = relative_error(ours.loss, wanted.loss), abs(ours.kl - wanted.kl) / max(wanted.kl, 1e-3)
    gradient = gradient_error(ours.gradients, wanted.gradients)
    found = f"KL {wanted.kl:.4f}; relative errors: loss {loss:.1g}, KL {kl:.1g}, gradient {gradient:.1g}"
    wrong, lazy = [], case.lazy and family.traits(tuned.get_base_model()).nll
    if ours.cached != wanted.cached:
        wrong.append(f"the caller's cache holds {ours.cached} positions, with stock {wanted.cached}")
    if ours.lazy is not lazy:
        wrong.append("logits were made for nobody" if lazy else "the forward was not the one in force")
    if ours.drawn and not wanted.drawn:
        wrong.append("random numbers were drawn")
    exact = loss <= LOSS_TOLERANCE and kl <= 10 * LOSS_TOLERANCE and gradient <= GRADIENT_TOLERANCE
    return Check(name, exact and not wrong and wanted.kl > 1e-4, expected, "; ".join([found, *wrong]))


def _step(model: Any, call: dict[str, Any]) -> Step:
    metrics.RUNNING.clear()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    arguments = {name: value() if callable(value) else value for name, value in call.items()}
    output = model(**arguments)
    loss: Tensor = output[0] if isinstance(output, tuple) else output.loss
    drawn = not torch.equal(state, torch.get_rng_state())
    loss.backward()
    kl = metrics.RUNNING.take().get("selfaug/kl", float("nan"))
    cached = [value.get_seq_length() for value in arguments.values() if hasattr(value, "get_seq_length")]
    return Step(loss.detach(), tiny.gradients(model), kl, cached, isinstance(output, SelfAugOutput), drawn)


def _wanted(base: Any, tuned: Any, case: Case) -> Step:
    with tiny.settings(SELFAUG="0"):
        stock = _step(tuned, case.call)
        loss, kl = _kl_term(base, tuned, case)
        loss.backward()
    term = tiny.gradients(tuned)
    gradients = {name: gradient + term.get(name, 0) for name, gradient in stock.gradients.items()}
    return Step(stock.loss.double() + loss.detach(), gradients, kl, stock.cached, drawn=stock.drawn)


def _kl_term(base: Any, tuned: Any, case: Case) -> tuple[Tensor, float]:
    """(alpha * weight * KL with its gradient, KL in nats per aligned token), from full logits in float64."""
    others = ("labels", "num_items_in_batch", "logits_to_keep", "num_logits_to_keep", "return_dict", "use_cache")
    inputs = {n: value for n, value in case.call.items() if n not in others and not callable(value)}
    given = case.call["labels"]  # shorter than the row where logits_to_keep is; what is cut off has no label
    labels = torch.nn.functional.pad(given, (inputs["input_ids"].shape[1] - given.shape[1], 0), value=-100)
    torch.manual_seed(4)
    log_p = tuned(**inputs).logits.double().log_softmax(-1)
    with torch.no_grad():
        log_q = base(**inputs).logits.double().log_softmax(-1)
    aligned = (labels == -100) & (case.call.get("attention_mask", torch.ones_like(labels)) != 0)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)[aligned].mean()
    supervised = int((labels[:, 1:] != -100).sum())
    return ALPHA * supervised / (case.num_items or supervised) * kl, float(kl.detach())


def _of_a_new_lora(base: Any, expected: str) -> tuple[bool, str, str]:
    with tiny.settings():
        step = _step(tiny.with_lora(base, fresh=True), tiny.batch())
    stock = base(**tiny.batch()).loss
    error = relative_error(step.loss, stock)
    return abs(step.kl) < 1e-6 and error < LOSS_TOLERANCE, expected, f"KL {step.kl:.2g}, relative error {error:.1g}"


def _in_evaluation(base: Any, expected: str) -> tuple[bool, str, str]:
    case = Case("", tiny.batch())
    tuned = tiny.with_lora(base).eval()
    with torch.no_grad(), tiny.settings(SELFAUG_EVAL="1", SELFAUG_ALPHA=str(ALPHA)):
        loss = tuned(**case.call).loss
    with torch.no_grad(), tiny.settings(SELFAUG="0"):
        wanted = tuned(**case.call).loss + _kl_term(base, tuned, case)[0]
    error = relative_error(loss, wanted)
    return error < LOSS_TOLERANCE, expected, f"relative error {error:.1g}"


def _filled_cache(base: Any, expected: str) -> tuple[bool, str, str]:
    """SelfAug cannot act with a filled cache, and must not touch it."""
    names = _cache_names(base)
    if not names:
        return True, expected, "left out: this forward copies the caller's cache"
    name = names[0]
    data = tiny.batch("none")
    steps = []
    tuned = tiny.with_lora(base)
    for on in ("1", "0"):
        with tiny.settings(SELFAUG=on):
            cache = _empty_cache(base)
            with torch.no_grad():
                cache = tuned(input_ids=data["input_ids"][:, :4], use_cache=True, **{name: cache})[name]
            rest = {"input_ids": data["input_ids"][:, 4:], "labels": data["labels"][:, 4:], "use_cache": True}
            steps.append(_step(tuned, {**rest, name: lambda filled=cache: filled}))
    ours, stock = steps
    same = torch.equal(ours.loss, stock.loss) and gradient_error(ours.gradients, stock.gradients) == 0
    found = f"{'the same' if same else 'another'} loss; {ours.cached} positions in the cache, with stock {stock.cached}"
    return same and ours.cached == stock.cached, expected, found


def _arguments(model: Any) -> tuple[set[str], bool]:
    """The names of the arguments of ``forward``, and whether it takes any others."""
    parameters = inspect.signature(type(model).forward).parameters.values()
    return {p.name for p in parameters}, any(p.kind is p.VAR_KEYWORD for p in parameters)


@torch.no_grad()
def _counts(model: Any, call: dict[str, Any], counted: dict[str, Any]) -> bool:
    """Whether stock's loss heeds ``num_items_in_batch``; some models of images and text make a mean all the same."""
    with tiny.settings(SELFAUG="0"):
        return not torch.equal(model(**call).loss, model(**counted).loss)


def _cache_names(model: Any) -> list[str]:
    """The names under which a call takes a cache: a deprecated one is in no signature, and works all the same."""
    names = []
    for name in sorted(CACHES):
        cache = _empty_cache(model)
        with torch.no_grad(), contextlib.suppress(TypeError, ValueError):
            model(input_ids=tiny.batch()["input_ids"], use_cache=True, **{name: cache})
        with contextlib.suppress(ValueError):  # a cache without attention layers does not count
            if cache.get_seq_length():
                names.append(name)
    return names


def _empty_cache(model: Any) -> Any:
    from transformers.cache_utils import DynamicCache

    takes_config = "config" in inspect.signature(DynamicCache.__init__).parameters  # layers of more than one kind
    return DynamicCache(config=model.config) if takes_config else DynamicCache()


def _replace_forward(model: Any) -> None:
    """Put a forward on the model that knows nothing of SelfAug, as TRL and Liger do."""
    model.forward = partial(family.stock_forward(model), model)


def _checkpoint(reentrant: bool, model: Any) -> None:
    model.config.use_cache = False
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
