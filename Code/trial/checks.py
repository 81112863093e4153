"""What one check of the trial says, and how numbers are compared in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

LOSS_TOLERANCE = 1e-5  # relative, of float32 models
GRADIENT_TOLERANCE = 1e-4  # relative to the norm of each tensor


@dataclass(frozen=True)
class Check:
    """One thing that must hold: what was ``expected``, what was ``found``, and whether they agree."""

    name: str
    ok: bool
    expected: str
    found: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.ok:
            return f"ok    {self.name}: {self.found}"
        return f"FAIL  {self.name}\n      expected: {self.expected}\n      found:    {self.found}"


def failed(name: str, expected: str, error: BaseException) -> Check:
    """The check of something that raised an error instead of an answer."""
    lines = str(error).strip().splitlines() or [""]
    return Check(name, False, expected, f"{type(error).__name__}: {lines[0][:300]}")


def relative_error(value: Tensor, wanted: Tensor) -> float:
    """``|value - wanted| / |wanted|`` of scalars; infinite where ``value`` is not finite."""
    value, wanted = value.detach().double(), wanted.detach().double()
    if not bool(torch.isfinite(value).all()):
        return float("inf")
    return float((value - wanted).abs() / wanted.abs().clamp_min(1e-12))


def gradient_error(gradients: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest error of a gradient tensor, relative to its norm; infinite where other tensors have one."""
    if gradients.keys() != wanted.keys() or not wanted:
        return float("inf")
    scale = max(float(gradient.norm()) for gradient in wanted.values())
    errors = [
        float((gradients[name] - gradient).norm()) / max(float(gradient.norm()), 1e-6 * scale)
        for name, gradient in wanted.items()
    ]
    return max(error if error == error else float("inf") for error in errors)
