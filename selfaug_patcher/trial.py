"""The trial: does SelfAug do what it should with a release that nobody has pinned?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .check import Check
from .environment import Environment


def trial(
    environment: Environment,
    sources: Mapping[str, tuple[str, bytes]],
    packages: Mapping[str, str],
    families: Sequence[str],
    report: Callable[[str], None],
) -> list[Check]:
    """Train small models in a child process, and compare them with stock.

    Args:
        environment: whose packages are tried.
        sources: module name to path and patched text, served from memory; empty: what is installed.
        packages: ``{"selfaug": folder}``, served likewise; empty: what is installed.
        families: which models.
        report: told how far the trial is, one line at a time.

    Returns:
        All checks, in the order in which they were made.
    """
    return [Check("trial", False, "this SelfAug has no trial yet: a release that is not pinned is refused")]
