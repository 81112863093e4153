"""The time that a run of `gpu` may take."""

from __future__ import annotations

import time
from typing import Callable

RESERVE = 0.1  # the share that is kept for what comes last: the loss alone, and the counts of kernels


class Budget:
    """The time that the run may take.

    Args:
        seconds: from ``start`` on.
        clock: seconds from any start.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic, start: float | None = None) -> None:
        self.seconds, self.clock = seconds, clock
        self.end = (clock() if start is None else start) + seconds
        self.reserve = RESERVE * seconds

    def left(self) -> float:
        """Seconds, without those in ``reserve``; below 0 when the time is over."""
        return self.end - self.reserve - self.clock()

    def refusal(self, expected: float) -> str:
        """Why work that takes ``expected`` seconds is not started; empty if there is time for it."""
        left, whole = self.left(), f"of the budget of {self.seconds / 60:g} minutes"
        if left <= 0:
            return f"nothing was left {whole}"
        return f"needs about {expected:.0f} s, and {left:.0f} s were left {whole}" if expected > left else ""
