"""What is there: each target's state, decided by the sha256 of its content and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import payload
from .environment import Environment, Package
from .errors import PatcherError, Problem
from .families import Target
from .families import targets as known_targets
from .payload import Runtime
from .pins import Pin, PinTable
from .receipt import Original
from .store import Store, digest, read

STOCK, PATCHED, MODIFIED, MISSING, UNSUPPORTED = "stock", "patched", "modified", "missing", "unsupported"


@dataclass(frozen=True)
class TargetState:
    """One target as it is now.

    Args:
        state: stock, patched, modified, missing or unsupported.
        pin: the release whose stock or patched content this is; None for an older SelfAug's, and for all other states.
        original: what the receipt of this site directory says of the target.
    """

    target: Target
    package: Package
    state: str
    path: Path | None = None
    content: bytes = b""
    sha256: str = ""
    pin: Pin | None = None
    original: Original | None = None

    @property
    def store(self) -> Store:
        assert self.package.site is not None
        return Store(self.package.site)

    @property
    def older(self) -> bool:
        """Patched by a SelfAug whose patches are no longer in the table."""
        return self.state == PATCHED and self.pin is None

    def edited_after_install(self) -> bool:
        """Modified, and what was modified is a file that SelfAug had patched (rather than one that pip has put there
        since: that one has the content that RECORD says, or another version)."""
        if self.state not in (MODIFIED, UNSUPPORTED) or self.original is None or not self.sha256:
            return False
        return self.sha256 != self.package.record_sha256 and self.package.version in ("", self.original.version)

    def stock_content(self, table: PinTable) -> bytes | Path | None:
        """The stock file of a target that SelfAug has patched: the kept original where it is intact, else computed."""
        original = self.original
        if original is not None and (self.sha256 == original.patched_sha256 or self.edited_after_install()):
            kept = self.store.original(original.stock_sha256)
            if kept is not None:
                return kept
        if self.pin is not None and self.state == PATCHED:
            return _pinned(table.stock(self.target, self.content), self.pin.stock_sha256)
        return None

    def patched_content(self, table: PinTable, stock: bytes) -> bytes:
        """The patched file for this stock content. Its hash is the pinned one, of a file that is known to compile."""
        pin = table.by_stock(self.target.name, digest(stock))
        assert pin is not None
        return _pinned(table.patched(self.target, stock), pin.patched_sha256)


@dataclass(frozen=True)
class State:
    """All targets and the runtime of one environment."""

    environment: Environment
    table: PinTable
    runtime: Runtime
    targets: tuple[TargetState, ...]
    runtime_state: str

    @property
    def model(self) -> TargetState:
        return self.targets[0]

    @property
    def site(self) -> Path | None:
        """Where the runtime belongs: beside transformers."""
        return self.model.package.site

    def stores(self) -> list[Store]:
        """The site directories that `install` would change: one, or two where the packages lie apart."""
        return [
            Store(site) for site in dict.fromkeys(t.package.site for t in self.targets if t.path is not None) if site
        ]

    def folders(self) -> list[Path]:
        """The folders that hold something to change."""
        return [f for t in self.targets if t.path and t.package.site for f in (t.package.site, t.path.parent)]

    @property
    def runtime_path(self) -> Path | None:
        return self.site / "selfaug" if self.site else None


def inspect(environment: Environment, table: PinTable, runtime: Runtime) -> State:
    """Read both targets, the receipts and the runtime. Writes nothing.

    Raises:
        PatcherError: a receipt is damaged.
    """
    targets = tuple(of_package(target, environment.packages[target.package], table) for target in known_targets())
    site = targets[0].package.site
    receipt = Store(site).receipt() if site else None
    found = payload.state(site, runtime, receipt)
    if found in ("installed", "older") and targets[0].state != PATCHED:
        found = "leftover"
    return State(environment, table, runtime, targets, found)


def look_again(environment: Environment, table: PinTable, runtime: Runtime, done: str) -> State:
    """The state after a run; if it cannot be told, the error begins with what was ``done`` all the same."""
    try:
        return inspect(environment, table, runtime)
    except PatcherError as error:
        raise PatcherError(*error.problems, state=f"{done} What failed is only the look at it afterwards.") from error


def of_package(target: Target, package: Package, table: PinTable) -> TargetState:
    """The state of one target in one copy of its package."""
    if package.site is None:
        return TargetState(target, package, MISSING)
    path = package.site / target.path
    receipt = Store(package.site).receipt()
    original = receipt.targets.get(target.name) if receipt else None
    pinned = table.by_version(target.name, package.version) if package.version else None
    content = read(path)
    if content is None:
        state = MISSING if pinned else UNSUPPORTED
        return TargetState(target, package, state, path, original=original)
    sha256 = digest(content)
    stock, patched = table.by_stock(target.name, sha256), table.by_patched(target.name, sha256)
    if stock:
        state = STOCK
    elif patched or (original and original.patched_sha256 == sha256):
        state = PATCHED
    else:
        ours = original is not None and package.version in ("", original.version)
        state = MODIFIED if pinned or ours else UNSUPPORTED
    return TargetState(target, package, state, path, content, sha256, stock or patched, original)


def _pinned(content: bytes, sha256: str) -> bytes:
    if digest(content) != sha256:
        raise PatcherError(wrong_result(sha256, digest(content)))
    return content


def wrong_result(expected: str, found: str) -> Problem:
    return Problem(
        id="bad-pins",
        what="a patch gave a file other than the pinned one",
        expected=expected,
        found=found,
        do="take the patches/ folder from a fresh checkout of SelfAug",
    )
