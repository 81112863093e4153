"""What SelfAug would do with a model and a batch, found out without training."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import transformers
from torch import Tensor

from .. import config, family, features, receipt, unpatched
from ..positions import Selection
from ..reference import decoder, guards, reference_of, switch
from ..toolkit.errors import first_line
from ..trainers import bypass
from . import batch, cost


@dataclass(frozen=True)
class Answer:
    """All that is found out.

    model: {"class", "parameters", "dtype", "lora", "lora_parameters"}.
    packages: for transformers and peft {"name", "version", "patched", "trust"}; transformers also has "family".
    settings: by key {"value", "source"}.
    batch: see :func:`.batch.counts`.
    costs: by the name of the step, see :class:`.cost.Cost`; empty if they could not be counted.
    refused: {"why", "do"}: for each of these, SelfAug does not act.
    notes: what differs from the usual step, and what could not be found out.
    """

    model: dict[str, Any]
    packages: list[dict[str, Any]]
    settings: dict[str, dict[str, Any]]
    batch: dict[str, Any]
    costs: dict[str, dict[str, int]]
    refused: list[dict[str, str]]
    notes: list[str]

    @property
    def acts(self) -> bool:
        return not self.refused


def answer(model: Any, lora: str, data: dict[str, Tensor]) -> Answer:
    """The answer for a model on the meta device and a batch.

    Raises:
        SettingError: a setting has a value that is not accepted.
    """
    settings, sources = config.read(model.config), config.sources(model.config)
    chosen = batch.selection(data, settings)
    packages = _packages(model)
    refused = _refused(model, settings, chosen)
    notes = _notes(model, settings, chosen, refused)
    costs: dict[str, dict[str, int]] = {}
    if packages[0]["patched"] and packages[1]["patched"] and chosen.supervised:
        costs, trouble = _costs(model, data, settings.every)
        notes += trouble
    parameters = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Answer(
        model={
            "class": type(model).__name__,
            "parameters": sum(size for size, trains in parameters if not trains),
            "dtype": str(next(guards.base_parameters(model))[1].dtype).replace("torch.", ""),
            "lora": lora,
            "lora_parameters": sum(size for size, trains in parameters if trains),
        },
        packages=packages,
        settings={
            key: {"value": value, "source": sources.get(key, "default")} for key, value in asdict(settings).items()
        },
        batch=batch.counts(data, chosen),
        costs=costs,
        refused=refused,
        notes=notes,
    )


def _packages(model: Any) -> list[dict[str, Any]]:
    class_patched = hasattr(type(model), "selfaug_aligned")
    name = family.name_of(model) if class_patched else type(model).__module__.split(".")[2]
    peft_patched = bool(switch.lora_layers(model))
    peft = str(getattr(sys.modules["peft"], "__version__", ""))
    return [
        {
            "name": "transformers", "family": name, "version": transformers.__version__, "patched": class_patched,
            "trust": receipt.trust(f"transformers:{name}") if class_patched else None,
        },
        {
            "name": "peft", "version": peft, "patched": peft_patched,
            "trust": receipt.trust("peft:lora") if peft_patched else None,
        },
    ]  # fmt: skip


def _refused(model: Any, settings: config.Settings, chosen: Selection) -> list[dict[str, str]]:
    """Why SelfAug would not act, by what training itself would say."""
    refused = []
    if not settings.enabled or settings.alpha == 0:
        setting = "enabled" if not settings.enabled else "alpha"
        source = config.sources(model.config)[setting]
        refused.append({"why": f"{source} switches SelfAug off", "do": "Unset it to train with SelfAug"})
    for cls in (None if hasattr(type(model), "selfaug_aligned") else type(model), guards.unpatched_peft(model)):
        if cls is not None:
            reason, do = unpatched.why(cls)
            refused.append({"why": f"{cls.__name__} is not patched: {reason}", "do": do})
    if refused:
        return refused
    try:
        reference_of(model, _without_cache(settings))
    except guards.ReferenceModelError as error:
        refused.append({"why": str(error), "do": "docs/reference-model.md"})
    try:
        features.modules_of(model, settings.align)
    except config.SettingError as error:
        refused.append({"why": str(error), "do": "docs/settings.md"})
    if chosen.supervised and not len(chosen.all_aligned):
        with _warnings() as said:
            try:
                bypass.of(model).nothing_aligned("in these rows", settings, None)
            except bypass.BypassError as error:
                said.append(str(error))
        refused += [{"why": text, "do": ""} for text in said]
    return refused


def _notes(model: Any, settings: config.Settings, chosen: Selection, refused: list[dict[str, str]]) -> list[str]:
    notes = []
    if not chosen.supervised:
        notes.append("No token is supervised: the loss of these rows is 0. Look at their labels, and at --max-length.")
    if refused or not hasattr(type(model), "selfaug_aligned"):
        return notes
    traits = family.traits(model)
    if not traits.nll:
        notes.append(
            "This family's loss is more than the NLL (or its head is not at the top), so its own forward makes the "
            f"loss, with all its logits, and the {settings.measure} is added."
        )
    elif not traits.linear:
        notes.append("This family's head is more than a product (a cap or a scale): the logits are made by its own.")
    if settings.every > 1:
        notes.append(
            f"One of {settings.every} micro-batches has the term: SelfAug's operations are the mean over them, its "
            "memory is that of the one."
        )
    if settings.target_kl is not None:
        notes.append(
            f"Alpha starts at {settings.alpha:g} and follows the KL toward {settings.target_kl:g} nats per aligned "
            "token, at each log of the Trainer."
        )
    whole = decoder.reads_whole_length(family.decoder_of(model))
    if whole:
        notes.append("A state depends on the length of its batch, so the reference reads whole rows.")
    if settings.reference_cache is not None:
        notes.append(
            "SELFAUG_CACHE is not used: a state depends on the length of its batch."
            if whole
            else "The cost is that of the first epoch. From the second on, the reference comes from the cache."
        )
    return notes


def _costs(model: Any, data: dict[str, Tensor], every: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    """(the costs, why there are none). The cache takes no part: a dry step writes nothing. Nor does a target for the
    KL, which needs a Trainer's logs and changes no cost.
    """
    before = getattr(model.config, "selfaug", None)
    counting = {"enabled": True, "reference_cache": None, "target_kl": None, "every": min(every, 2)}
    model.config.selfaug = {**(before or {}), **counting}
    try:
        with _warnings() as said:
            counted = cost.costs(model, data, every)
    except Exception as error:  # a family's layers may ask for numbers, in as many ways as there are families
        return {}, [f"The cost is not known: this model cannot be called without numbers ({first_line(error)})."]
    finally:
        model.config.selfaug = before
    return {name: asdict(one) for name, one in counted.items()}, said


def _without_cache(settings: config.Settings) -> config.Settings:
    return config.Settings(**{**asdict(settings), "reference_cache": None})


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """The texts of the warnings that training would show."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        yield texts
    texts += [str(each.message) for each in caught if issubclass(each.category, bypass.BypassWarning)]
