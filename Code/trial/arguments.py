"""The arguments of a model's ``forward`` and of its decoder's. The runtime hands them on by name, so it has to know
what each one means: a release that adds or renames an argument fits the seam, and may be silently wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from .. import family
from ..calls import CACHES, PLAIN, STOCK_LOSS
from .checks import Check


def checks(model: Any) -> Iterator[Check]:
    """Whether the runtime knows every argument of a model's ``forward`` and of its decoder's."""
    for name, module in (("forward", model), ("the decoder's forward", family.decoder_of(model))):
        parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
        unknown = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in PLAIN | STOCK_LOSS]
        yield Check(
            f"arguments of {name}",
            not unknown,
            "arguments that SelfAug knows",
            f"{', '.join(unknown)}, which SelfAug does not know" if unknown else f"{len(parameters)}, all known",
        )
        caches = [p.name for p in parameters if p.name in CACHES or "Cache" in str(p.annotation)]
        yield Check(f"cache of {name}", len(caches) == 1, "one argument for a cache", ", ".join(caches) or "none")
