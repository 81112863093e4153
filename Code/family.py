"""What differs from one family of models to another, asked of the model itself: its decoder, its head, and whether its
loss is the NLL and nothing else. No family is named here.

A family's ``forward`` may do more with hidden states than multiply them by the head's matrix: soft caps (Gemma 2),
scales (Granite, Cohere), router losses (Mixtral). So transformers' own ``forward`` is called once, with given hidden
states in place of its decoder, and what comes back is compared with the plain product and the plain loss.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Callable

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeModelOutputWithPast

from .eager import eager

STOCK = "selfaug_stock_forward"  # the attribute of a patched class that keeps its forward
MODELS = "transformers.models."  # where the families of transformers are


@dataclass(frozen=True)
class Traits:
    """What ``forward`` does with hidden states.

    linear: the logits are the head's output, and nothing is done to them.
    nll: the loss on labels is the mean NLL of these logits, and nothing is added.
    counts: with ``num_items_in_batch`` the loss is the sum divided by that number.
    fields: what its output has beside the fields of ``CausalLMOutputWithPast``.
    """

    linear: bool = True
    nll: bool = True
    counts: bool = True
    fields: tuple[str, ...] = ()


def name_of(model: Any) -> str:
    """The family's name, as transformers names its folder: ``qwen2``. Empty for a copy of a family's patched file."""
    module = next(cls.__module__ for cls in type(model).__mro__ if STOCK in vars(cls))
    return module.split(".")[2] if module.startswith(MODELS) else ""


def decoder_of(model: Any) -> Any:
    """The module that turns tokens into hidden states."""
    return model._modules[_decoder_name(model)]


def _decoder_name(model: Any) -> str:
    if model.base_model_prefix in model._modules:
        return str(model.base_model_prefix)
    inside = model.get_decoder()  # in a model of images and text, a part of the decoder
    return str(next(name for name, child in model._modules.items() if any(part is inside for part in child.modules())))


def text_part(decoder: Any) -> Any:
    """The part of a decoder that attends over tokens: in one of images and text, the language model inside."""
    config = decoder.config
    text = text_config(decoder)
    parts = decoder._modules.values() if text is not config else ()
    of_type = (part for part in parts if getattr(getattr(part, "config", None), "model_type", "") == text.model_type)
    return next(of_type, decoder)


def text_config(model: Any) -> Any:
    """The config with ``hidden_size`` and ``vocab_size``: in a model of images and text, that of the text."""
    whole = model.config
    return whole.get_text_config() if hasattr(whole, "get_text_config") else whole


def head_of(model: Any) -> nn.Module:
    """The module from hidden states (..., H) to logits (..., V) as ``forward`` would give them."""
    return model.get_output_embeddings() if traits(model).linear else FamilyHead(model)


def stock_forward(model: nn.Module) -> Callable[..., Any]:
    """``forward`` as transformers wrote it, a function of (self, ...), whatever else is in force now."""
    forward: Callable[..., Any] = next(vars(cls)[STOCK] for cls in type(model).__mro__ if STOCK in vars(cls))
    return forward


@torch.no_grad()
def changes_logits(model: Any, logits: Tensor, made: Tensor) -> bool:
    """Whether a forward has done more with the head's output than transformers' own does. False if nobody can tell.

    Args:
        logits: (V,) of one position, as the forward returned them.
        made: (V,), what the head made there.
    """
    embeddings = model.get_output_embeddings()
    head = next((name for name, module in model._modules.items() if module is embeddings), None)
    if head is None:
        return False
    states = made.new_zeros(1, 1, text_config(model).hidden_size)
    decoder = _Returns(_OnlyStates(last_hidden_state=states))
    with _replaced(model, _decoder_name(model), decoder), _replaced(model, head, _Returns(made.view(1, 1, -1))):
        try:
            stock = _called(model, states).logits
            return not torch.allclose(stock.flatten().float(), logits.float(), rtol=1e-2, atol=1e-3)
        except Exception:  # it needs the head's weight, or more than states
            return False


class FamilyHead(nn.Module):
    """The head of a family that does more than a product: transformers' own ``forward``, with given hidden states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.output_embeddings = model.get_output_embeddings()  # so that parameters() and the LoRA switch find it
        self.model = weakref.ref(model)  # no module of this one

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., V) logits, with a gradient where ``hidden`` or the head has one."""
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        model = self.model()
        with _replaced(model, _decoder_name(model), _Returns(_OnlyStates(last_hidden_state=rows))):
            logits: Tensor = _called(model, rows).logits
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])


@eager
def traits(model: Any) -> Traits:
    """What the ``forward`` of ``model`` does with hidden states; looked at again if a setting of the model changes,
    such as ``config.output_router_logits``.
    """
    settings = _settings(model)
    known = _TRAITS.get(model)
    if known is None or known[0] != settings:
        known = _TRAITS[model] = (settings, _observed(model))
    return known[1]


_TRAITS: weakref.WeakKeyDictionary[nn.Module, tuple[list[Any], Traits]] = weakref.WeakKeyDictionary()


def _settings(model: Any) -> list[Any]:
    """The plain values of the model's configs, and the numbers that the model keeps as attributes (scales)."""
    configs = {id(config): config for config in (model.config, text_config(model))}
    values = [item for config in configs.values() for item in vars(config).items() if type(item[1]) in _PLAIN]
    return values + [item for item in vars(model).items() if type(item[1]) in (int, float)]


_PLAIN = (bool, int, float, str, type(None))


@torch.no_grad()
def _observed(model: Any) -> Traits:
    """Made with constants in place of the decoder and of the head, so that no weight is used: a head may be sharded."""
    config = text_config(model)
    states = torch.arange(3.0 * config.hidden_size).sin().view(1, 3, -1)
    logits = (10 * torch.arange(3.0 * config.vocab_size).sin()).view(1, 3, -1)
    labels = logits.argmin(-1)  # unlikely tokens, so that the loss is large
    nll = nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:])
    embeddings = model.get_output_embeddings()
    head = next((name for name, module in model._modules.items() if module is embeddings), None)
    if head is None:  # it is deeper inside
        return Traits(linear=False, nll=False)
    decoder = _Returns(_OnlyStates(last_hidden_state=states))
    with _replaced(model, _decoder_name(model), decoder), _replaced(model, head, _Returns(logits)):
        try:
            made = _called(model, states)
            linear = torch.equal(made.logits.float(), logits)
        except Exception:  # it needs the head's weight
            return Traits(linear=False, nll=False)
        try:
            loss = _called(model, states, labels=labels).loss
        except Exception:  # it needs more of its decoder than hidden states, such as router logits
            return Traits(linear, nll=False)
        try:
            counted = _called(model, states, labels=labels, num_items_in_batch=torch.tensor(7)).loss
        except Exception:  # it takes no such number, so none is ever given
            counted = None
    known = {field.name for field in fields(CausalLMOutputWithPast)}
    return Traits(
        linear,
        bool(torch.isclose(loss.float(), nll, rtol=1e-4)),
        counts=counted is None or not torch.equal(counted, loss),
        fields=tuple(field.name for field in fields(made) if field.name not in known),
    )


def _called(model: Any, states: Tensor, **given: Tensor) -> Any:
    """The output of transformers' own ``forward`` whose decoder returns ``states`` (1, T, H)."""
    ids = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    return stock_forward(model)(model, input_ids=ids, use_cache=False, return_dict=True, **given)


class _Returns(nn.Module):
    """A module that returns what it was made with."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.value


class _OnlyStates(MoeModelOutputWithPast):
    """A decoder's output in which all but the hidden states is None, whatever else a family asks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@contextmanager
def _replaced(model: Any, name: str, stand_in: nn.Module) -> Iterator[None]:
    """Within: the child of ``model`` with this name is ``stand_in``."""
    module = model._modules[name]
    model._modules[name] = stand_in
    try:
        yield
    finally:
        model._modules[name] = module
