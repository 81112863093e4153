"""A plan: every file operation of a run, worked out before the first of them; and what came of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .environment import Commands, Environment
from .errors import NOT_WRITABLE, PatcherError, Problem, leaving
from .receipt import BYTECODE
from .refusals import lost_original
from .seam import class_names
from .state import STOCK, UNPINNED, State, TargetState
from .store import Store, content_of, digest, names, read, sha256_of
from .transaction import DONE, MakeFolder, Operation, Put, RemoveFolder, execute, locked


@dataclass(frozen=True)
class Patch:
    """A target that is to be patched: its stock file, as content and as the kept original where there is one, and the
    patched file."""

    target: TargetState
    kept: bytes | Path
    stock: bytes
    patched: bytes
    pinned: bool

    @property
    def family(self) -> str:
        return self.target.target.family

    @property
    def is_model(self) -> bool:
        return self.target.target.is_model

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that get a base class of SelfAug's."""
        return class_names(self.target.target, self.stock)


def patch(target: TargetState, state: State) -> Patch:
    """The target with its stock and its patched content.

    Raises:
        PatcherError: an older SelfAug patched the target, and the original is lost.
    """
    kept = target.content if target.state in (STOCK, UNPINNED) else target.stock_content(state.table)
    if kept is None:
        raise PatcherError(lost_original(target, state.environment.commands))
    stock = content_of(kept)
    pinned = state.table.by_stock(target.target.name, digest(stock)) is not None
    return Patch(target, kept, stock, target.patched_content(state.table, stock), pinned)


def texts(patches: Iterable[Patch], kind: str) -> dict[str, tuple[str, bytes]]:
    """The ``stock`` or ``patched`` texts, as `memory.install` takes them: module name to path and text."""
    return {each.target.target.module: (str(each.target.path), getattr(each, kind)) for each in patches}


@dataclass
class Plan:
    """Operations in their order, with what they need; and the same in words, for people.

    Args:
        changes: pairs of a word (patch, restore, add, update, remove) and a path.
        patches: what `install` patches; ``optional``: the families among them that nobody named.
        stays: SelfAug is left in a site directory, for another environment.
    """

    operations: list[Operation] = field(default_factory=list)
    keep: list[tuple[Store, str]] = field(default_factory=list)
    changes: list[tuple[str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    patches: list[Patch] = field(default_factory=list)
    optional: list[str] = field(default_factory=list)
    stays: bool = False
    _present: dict[Path, str] = field(default_factory=dict)

    def put(self, store: Store, path: str, content: bytes | Path | None, like: Path | None = None) -> bool:
        """Plan a file's new content, and say whether it differs from what is there. Two plans for one file are carried
        out one after the other."""
        full = store.site / path
        expect = self._present[full] if full in self._present else sha256_of(full)
        new = "" if content is None else sha256_of(content) if isinstance(content, Path) else digest(content)
        if new == expect:
            return False
        self.operations.append(Put(store, path, content, expect, like))
        self._present[full] = new
        return True

    def read(self, target: TargetState) -> None:
        """Take the content that the state has read for the one that is there; `transaction` checks that it still is."""
        if target.path is not None:
            self._present[target.path] = target.sha256

    def make_folder(self, store: Store, path: str) -> None:
        if not (store.site / path).is_dir():
            self.operations.append(MakeFolder(store, path))

    def remove_folder(self, store: Store, path: str) -> None:
        """Plan to remove a folder that will be empty by then, but for bytecode."""
        if (store.site / path).is_dir():
            self.operations.append(RemoveFolder(store, path))

    def remove_bytecode(self, store: Store, path: str) -> None:
        """Plan to remove every compiled form of a source file: some forms are never checked against their source."""
        for name in bytecode(store, path):
            self.put(store, beside(path, name), None)

    def not_writable(self, commands: Commands) -> list[Problem]:
        """The folders in which this plan changes something, and which refuse it."""
        sites = {op.store.site for op in self.operations}
        folders = {(op.store.site / op.path).parent for op in self.operations}
        return not_writable(folders | sites | {Store(site).root for site in sites}, commands)


def not_writable(folders: Iterable[Path], commands: Commands) -> list[Problem]:
    """The problem that some of these folders exist and refuse to have files replaced in them; none where none does."""
    closed = [folder for folder in sorted(folders) if folder.exists() and not os.access(folder, os.W_OK | os.X_OK)]
    problem = Problem(
        id="not-writable",
        what="folders cannot be written to" if len(closed) > 1 else "a folder cannot be written to",
        expected="the right to replace files in each" if len(closed) > 1 else "the right to replace files in it",
        found="\n".join(map(_why_not, closed)),
        do=f"run the command as the owner, or use SelfAug from memory: {commands.patcher('run', 'SCRIPT')}",
        exit_code=NOT_WRITABLE,
    )
    return [problem] if closed else []


def bytecode(store: Store, path: str) -> dict[str, str]:
    """The compiled forms of the source file ``path``: names in its ``__pycache__``, and their sha256."""
    folder = (store.site / path).parent / "__pycache__"
    stem = Path(path).stem
    ours = [name for name in names(folder) if name.split(".")[0] == stem and BYTECODE.fullmatch(name)]
    return {name: digest(read(folder / name) or b"") for name in ours}


def restore_stock(plan: Plan, target: TargetState, content: bytes | Path, like: Path | None = None) -> None:
    """Plan the stock file of a target, and the bytecode that it had."""
    path, store = target.target.path, target.store
    plan.put(store, path, content, like)
    plan.remove_bytecode(store, path)
    for name, sha256 in (target.original.bytecode if target.original else {}).items():
        kept = store.original(sha256)
        cache = (store.site / path).parent / "__pycache__"
        if kept is not None and isinstance(content, Path) and cache.is_dir():  # don't recreate a deleted `__pycache__`
            plan.put(store, beside(path, name), kept)


def beside(path: str, name: str) -> str:
    """The path of the compiled form ``name`` of the source file ``path``."""
    return f"{path.rsplit('/', 1)[0]}/__pycache__/{name}"


def _why_not(folder: Path) -> str:
    information = folder.stat()
    owner = f", owner {information.st_uid}" if hasattr(os, "geteuid") and information.st_uid != os.geteuid() else ""
    read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
    return f"{folder} ({'read-only file system' if read_only else 'no permission' + owner})"


@dataclass(frozen=True)
class Outcome:
    """``state`` is the environment after the run, or before a dry run; ``recovered`` is what a recovery reported."""

    verb: str
    state: State
    plan: Plan
    recovered: list[str] = field(default_factory=list)


def carry_out(
    verb: str,
    look: Callable[[], State],
    make: Callable[[State], Plan],
    stores: Sequence[Store],
    *,
    dry_run: bool,
    before: Callable[[State, Plan], Plan],
    check: Callable[[State, Plan], None] = lambda state, plan: None,
) -> Outcome:
    """Plan, and carry out all operations of the plan, or none.

    Args:
        look: reads the environment.
        make: the plan for what was read.
        stores: those to lock.
        before: what comes last before anything is written; gives the plan to carry out.
        check: called when all is in place; if it raises, all is undone.
    """
    state = look()
    early = _without_lock(state, look, make, stores, dry_run)
    if early is not None and (dry_run or not early.operations):
        return Outcome(verb, state, early)
    with contextlib.ExitStack() as afterwards:
        with locked(stores) as recovered:
            state = look()
            plan = before(state, make(state))
            if plan.operations:
                execute(verb, plan.operations, plan.keep, lambda: check(state, plan))
                afterwards.enter_context(leaving(DONE[verb]))
        return Outcome(verb, look_again(look, verb), plan, recovered)


def look_again(look: Callable[[], State], verb: str) -> State:
    """The state after a run. If inspecting fails, the error still says what was done."""
    try:
        return look()
    except PatcherError as error:
        raise PatcherError(*error.problems, state=f"{DONE[verb]} Only the inspection afterwards failed.") from error


def _without_lock(
    state: State, look: Callable[[], State], make: Callable[[State], Plan], stores: Sequence[Store], dry_run: bool
) -> Plan | None:
    """The plan, made without the lock: neither a dry run needs the lock, nor a user without write permission who has
    nothing to do. None where the lock is needed: an earlier run has to be undone, or another patcher may be at work."""
    if any(store.interrupted() for store in stores):
        if dry_run:
            raise _interrupted(state.environment, stores)
        return None
    if not dry_run and any(store.needs_tidying() for store in stores):
        return None
    try:
        return make(state)
    except PatcherError:
        # Another patcher may be mid-install. If so, retry under the lock.
        if dry_run or not (any(store.needs_tidying() for store in stores) or look() != state):
            raise
        return None


def _interrupted(environment: Environment, stores: Sequence[Store]) -> PatcherError:
    """For a dry run, which must not write and therefore cannot undo what an earlier run left."""
    return PatcherError(
        Problem(
            id="interrupted-run",
            what="an earlier run was interrupted, and has to be undone first",
            expected="no files of an unfinished run",
            found=", ".join(str(store.root) for store in stores if store.interrupted()),
            do=f"{environment.commands.patcher('status')} (which undoes it), then the same command again",
        )
    )
