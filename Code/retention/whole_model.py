"""A model whose own weights were trained (full fine-tuning), measured as an adapter is: switched on and off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..toolkit.errors import Refusal

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"


def is_whole(folder: Path) -> bool:
    """Whether the folder holds a model of its own. An adapter that was saved beside one counts first."""
    return (folder / CONFIG).is_file() and not (folder / ADAPTER_CONFIG).is_file()


class WholeModel:
    """The modules of the base model with the weights of a tuned model. ``disable_adapter`` and ``get_base_model`` have
    the meaning that they have on peft's models; everything else is the base model's.

    The tensors change places, so memory holds both models once. :meth:`unload` gives the base its own back.

    Args:
        base: the base model, in eval mode.
        tuned: a model of the same architecture.
        name: the tuned model in errors.

    Raises:
        Refusal: the two have other weights, by name or shape.
    """

    def __init__(self, base: Any, tuned: Any, name: str) -> None:
        self._base, self._other = base, _tensors(tuned)
        _same_shapes(_tensors(base), self._other, name)
        self._swap()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._base(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._base, name)

    def get_base_model(self) -> Any:
        return self._base

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Within the block, the modules have the base model's weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def unload(self) -> Any:
        """The base model with its own weights. This object is of no use afterwards."""
        self._swap()
        return self._base

    def _swap(self) -> None:
        for name, tensor in _tensors(self._base).items():
            other = self._other[name]
            tensor.data, other.data = other.data, tensor.data


def _tensors(model: Any) -> dict[str, Tensor]:
    """Parameters and buffers, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _same_shapes(base: dict[str, Tensor], tuned: dict[str, Tensor], name: str) -> None:
    for one in [*base, *tuned]:
        theirs, ours = tuned.get(one), base.get(one)
        if theirs is None or ours is None or theirs.shape != ours.shape:
            raise Refusal(
                "not-the-base", f"{name} was not made from this base model", f"{one}: {_shape(ours)}", _shape(theirs),
                "--base: the model that this one was trained from, with the same vocabulary",
            )  # fmt: skip


def _shape(tensor: Tensor | None) -> str:
    return "no such weight" if tensor is None else str(tuple(tensor.shape))
