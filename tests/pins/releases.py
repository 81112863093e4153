"""Stock files of all releases, from wheels in the cache and from what is installed here; none is in the repository."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from pathlib import Path

from selfaug_patcher import families, pins
from selfaug_patcher.errors import PatcherError
from selfaug_patcher.maintain import wheels

TABLE = pins.load()
TARGETS = {target.name: target for target in families.targets()}
PROVE_ALL = os.environ.get("SELFAUG_PROVE_ALL") == "1"


def name(pin: pins.Pin) -> str:
    return f"{pin.target.split(':')[0]}-{pin.version}"


def stock_file(pin: pins.Pin) -> bytes | None:
    """The file of this release, or None where neither the cache nor this environment has it."""
    wheel = wheels.find(TARGETS[pin.target].package, pin.version)
    return from_wheel(wheel, TARGETS[pin.target].path) if wheel else from_here(pin)


@functools.cache
def from_wheel(wheel: Path, path: str) -> bytes | None:
    return wheels.read(wheel, path)


@functools.cache
def from_here(pin: pins.Pin) -> bytes | None:
    """The file of this very release in the running environment, as it was before a patch."""
    target = TARGETS[pin.target]
    try:
        distribution = importlib.metadata.distribution(target.package)
        if distribution.version != pin.version:
            return None
        data = Path(distribution.locate_file(target.path)).read_bytes()
        return data if hashlib.sha256(data).hexdigest() == pin.stock_sha256 else TABLE.stock(target, data)
    except (importlib.metadata.PackageNotFoundError, OSError, PatcherError):
        return None


def distinct(pinned: tuple[pins.Pin, ...]) -> list[pins.Pin]:
    """One pin for each stock file; of several releases with the same file, one whose wheel is in the cache."""
    chosen: dict[str, pins.Pin] = {}
    for pin in pinned:
        known = chosen.setdefault(pin.stock_sha256, pin)
        package = TARGETS[pin.target].package
        if not wheels.find(package, known.version) and wheels.find(package, pin.version):
            chosen[pin.stock_sha256] = pin
    return list(chosen.values())
