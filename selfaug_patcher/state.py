"""What is there: each target's state, decided by the sha256 of its content and by nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from . import payload
from .environment import Environment, Package
from .errors import PatcherError, Problem
from .families import Target, targets
from .payload import Runtime
from .pins import Pin, PinTable
from .receipt import Original, Receipt
from .store import Store, digest, read

STOCK, PATCHED, MODIFIED, MISSING, UNSUPPORTED = "stock", "patched", "modified", "missing", "unsupported"
UNPINNED = "unpinned"

PINNED, PROVED_HERE = "pinned", "proved here"


@dataclass(frozen=True)
class TargetState:
    """One target as it is now.

    Args:
        state: stock, patched, unpinned (as pip installed it, of a release that nobody has pinned), modified, missing or
            unsupported.
        pin: the release whose stock or patched content this is; None in all other cases.
        original: what the receipt of this site directory says of the target.
        older: patched by a SelfAug with other seams.
        why: the refusal of the seam, where an unpinned file has no place for it.
    """

    target: Target
    package: Package
    state: str
    path: Path | None = None
    content: bytes = b""
    sha256: str = ""
    pin: Pin | None = None
    original: Original | None = None
    older: bool = False
    why: Problem | None = None

    @property
    def store(self) -> Store:
        assert self.package.site is not None
        return Store(self.package.site)

    @property
    def proved(self) -> dict[str, str]:
        """The versions with which a patched file was proved on this machine; empty for a pinned one."""
        return dict(self.original.proved) if self.original and self.pin is None and self.state == PATCHED else {}

    @property
    def trust(self) -> str:
        """Why the file may be patched: ``pinned``, ``proved here``, or empty where neither is so."""
        return PINNED if self.pin else PROVED_HERE if self.proved else ""

    def stock_content(self, table: PinTable) -> bytes | Path | None:
        """The stock file of a target that SelfAug has patched: the kept original where it is intact, else computed."""
        original = self.original
        if original is not None and (self.sha256 == original.patched_sha256 or self.edited_after_install()):
            kept = self.store.original(original.stock_sha256)
            if kept is not None:
                return kept
        if self.state != PATCHED or self.older:
            return None
        stock = table.stock(self.target, self.content)
        return _pinned(stock, self.pin.stock_sha256) if self.pin else stock

    def patched_content(self, table: PinTable, stock: bytes) -> bytes:
        """The patched file for this stock content; where the stock content is pinned, so is the hash of the result."""
        patched, pin = table.patched(self.target, stock), table.by_stock(self.target.name, digest(stock))
        return _pinned(patched, pin.patched_sha256) if pin else patched

    def edited_after_install(self) -> bool:
        """Whether someone edited the patched file. A file that pip has put there since `install` does not count: it has
        the content that RECORD says, or is of another version."""
        if self.state not in (MODIFIED, UNSUPPORTED) or self.original is None or not self.sha256:
            return False
        return not self.as_pip_installed() and self.package.version in ("", self.original.version)

    def as_pip_installed(self) -> bool:
        """Whether the content is the one that the package's list of files gives."""
        return self.sha256 == self.package.record.get(self.target.path)


@dataclass(frozen=True)
class State:
    """All targets and the runtime of one environment."""

    environment: Environment
    table: PinTable
    runtime: Runtime
    targets: tuple[TargetState, ...]
    runtime_state: str

    @property
    def models(self) -> tuple[TargetState, ...]:
        return tuple(target for target in self.targets if target.target.is_model)

    @property
    def layer(self) -> TargetState:
        return next(target for target in self.targets if not target.target.is_model)

    def in_use(self) -> list[TargetState]:
        """The targets that matter to this environment: the models that SelfAug patched, else the default one; peft."""
        models = [model for model in self.models if model.state == PATCHED or model.original is not None]
        return [*(models or self.models[:1]), self.layer]

    @property
    def site(self) -> Path | None:
        """Where the runtime belongs: beside transformers."""
        return self.models[0].package.site

    @property
    def store(self) -> Store:
        """The record of the site directory with transformers."""
        return self.models[0].store

    @property
    def runtime_path(self) -> Path | None:
        return self.site / "selfaug" if self.site else None


def stores(chosen: list[TargetState]) -> list[Store]:
    """The site directories of these targets: one, or two where the packages lie apart."""
    return [Store(site) for site in dict.fromkeys(t.package.site for t in chosen if t.path is not None) if site]


def inspect(environment: Environment, table: PinTable, runtime: Runtime) -> State:
    """Read all targets, the receipts and the runtime. Writes nothing.

    Raises:
        PatcherError: a receipt is damaged.
    """
    sites = dict.fromkeys(package.site for package in environment.packages.values())
    receipts = {site: Store(site).receipt() if site else None for site in sites}  # one look for all families
    packages = [(target, environment.packages[target.package]) for target in targets()]
    states = tuple(of_package(target, package, table, receipts[package.site]) for target, package in packages)
    site = states[0].package.site
    runtime_state = payload.state(site, runtime, receipts[site])
    patched = any(target.state == PATCHED for target in states if target.target.is_model)
    if runtime_state in ("installed", "older") and not patched:
        runtime_state = "leftover"
    return State(environment, table, runtime, states, runtime_state)


def of_package(target: Target, package: Package, table: PinTable, receipt: Receipt | None) -> TargetState:
    """The state of one target in one copy of its package. ``receipt``: that of the site directory with this copy."""
    if package.site is None:
        return TargetState(target, package, MISSING)
    path = package.site / target.path
    original = receipt.targets.get(target.name) if receipt else None
    pinned = bool(package.version) and table.by_version(target.name, package.version) is not None
    content = read(path)
    if content is None:
        return TargetState(target, package, MISSING if pinned else UNSUPPORTED, path, original=original)
    here = TargetState(target, package, MODIFIED, path, content, digest(content), original=original)
    stock, patched = table.by_stock(target.name, here.sha256), table.by_patched(target.name, here.sha256)
    if stock or patched:
        return replace(here, state=STOCK if stock else PATCHED, pin=stock or patched)
    computed = _without_seam(target, content, table)
    if original is not None and original.patched_sha256 == here.sha256:
        return replace(here, state=PATCHED, older=computed != original.stock_sha256)
    if computed and computed == package.record.get(target.path):  # patched, and the record of that is lost
        return replace(here, state=PATCHED)
    if here.as_pip_installed():
        return _unpinned(here, table)
    ours = original is not None and package.version in ("", original.version)
    return here if pinned or ours or target.path in package.record else replace(here, state=UNSUPPORTED)


def _unpinned(here: TargetState, table: PinTable) -> TargetState:
    """A file of a release that nobody has pinned: to be tried, where the seam has its place."""
    try:
        table.patched(here.target, here.content)
    except PatcherError as error:
        return replace(here, state=UNSUPPORTED, why=error.problems[0])
    return replace(here, state=UNPINNED)


def _without_seam(target: Target, content: bytes, table: PinTable) -> str:
    """The sha256 of the file without this SelfAug's seam; empty where the seam is not in the file."""
    try:
        return digest(table.stock(target, content))
    except PatcherError:
        return ""


def _pinned(content: bytes, sha256: str) -> bytes:
    if digest(content) != sha256:
        do = "take the patches/ folder from a fresh checkout of SelfAug"
        what = "a seam gave a file other than the pinned one"
        raise PatcherError(Problem("bad-pins", what, sha256, digest(content), do))
    return content
