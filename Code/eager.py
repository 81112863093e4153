"""Keep ``torch.compile`` out of SelfAug's own Python: a compiled model breaks its graph once, around its decoder."""

from __future__ import annotations

import sys
from typing import Any, Callable, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """``function``, and what it calls, run as plain Python."""
    return _disabled(function, recursive=True)


def eager_around(function: Function) -> Function:
    """``function`` itself runs as plain Python; a decoder that it calls may be compiled."""
    return _disabled(function, recursive=False)


def _disabled(function: Function, recursive: bool) -> Function:
    # Importing Dynamo takes a second that inference need not pay. Recent transformers have it loaded by now; beside an
    # older one a compiled model is right all the same, with more graph breaks.
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else dynamo.disable(function, recursive=recursive)
