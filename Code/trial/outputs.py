"""What a step returns, read in every way, and what it says: as with stock."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Callable

import torch
from torch import Tensor

from . import tiny
from .checks import Check, failed

EXPECTED = "what stock's output gives"


def checks(cls: Any) -> Iterator[Check]:
    """The fields of the output by attribute, item, ``get`` and as a tuple, and the warnings of a step."""
    tuned = tiny.with_lora(tiny.base(cls))
    call = {**tiny.batch(), "use_cache": True, "output_hidden_states": True}
    with tiny.settings(SELFAUG="0"), _messages() as said_by_stock:
        stock = tuned(**call)
    with tiny.settings(), _messages() as said:
        ours = tuned(**call)
    for name, read in _READERS.items():
        try:
            differing = [key for key in stock if key != "loss" and not _same(read(ours, stock, key), stock[key])]
            if not isinstance(read(ours, stock, "loss"), Tensor):
                differing.append("loss")
            differing += [key for key in ours if key not in stock]
        except Exception as error:
            yield failed(f"outputs by {name}", EXPECTED, error)
        else:
            found = f"another {', '.join(differing)}" if differing else f"the same {', '.join(stock)}"
            yield Check(f"outputs by {name}", not differing, EXPECTED, found)
    new = [message for message in said if message not in said_by_stock and not message.startswith("SelfAug is on:")]
    yield Check("warnings of a step", not new, "no warning that stock does not give", "; ".join(new)[:300] or "none")


_READERS: dict[str, Callable[[Any, Any, str], Any]] = {
    "attribute": lambda ours, stock, key: getattr(ours, key),
    "item": lambda ours, stock, key: ours[key],
    "get()": lambda ours, stock, key: ours.get(key),
    "position": lambda ours, stock, key: ours[list(stock).index(key)],
    "to_tuple()": lambda ours, stock, key: ours.to_tuple()[list(stock).index(key)],
}


def _same(ours: Any, stock: Any) -> bool:
    """Equal tensors, up to the order of a sum; of caches and tuples, the same length."""
    if isinstance(stock, Tensor):
        return isinstance(ours, Tensor) and ours.dtype == stock.dtype and torch.allclose(ours, stock, rtol=1e-5)
    if hasattr(stock, "get_seq_length"):
        return type(ours) is type(stock) and ours.get_seq_length() == stock.get_seq_length()
    return type(ours) is type(stock) and (not isinstance(stock, tuple) or len(ours) == len(stock))


@contextlib.contextmanager
def _messages() -> Iterator[list[str]]:
    """The Python warnings and the log messages of transformers within, from level WARNING on."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Handler(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield messages
        messages.extend(str(warning.message) for warning in caught)
    finally:
        logger.removeHandler(handler)
