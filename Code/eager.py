"""Decorators that keep ``torch.compile`` out of SelfAug's own Python. A compiled model then has one
graph break, around its decoder.
"""

from __future__ import annotations

import sys
from typing import Any, Callable, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """``function`` and everything that it calls run as plain Python."""
    return _disabled(function, recursive=True)


def eager_around(function: Function) -> Function:
    """``function`` runs as plain Python; a decoder that it calls may be compiled."""
    return _disabled(function, recursive=False)


def constant(function: Function) -> Function:
    """A compiled graph has the result that ``function`` has when the graph is made, and does not look inside."""
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.assume_constant_result(function)


def _disabled(function: Function, recursive: bool) -> Function:
    # To import Dynamo takes a second, which inference should not pay. Recent transformers has imported it by now. With
    # an older transformers, a compiled model has more graph breaks and the same results.
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.disable(function, recursive=recursive)
