"""Many file operations that happen as one. Only this module, with `files`, `journal` and `lock` below it, writes.

Everything that a run needs, the old files (as hard links, where the file system has them) and the new ones, lies in
``.selfaug/stage`` before the first target is touched, and the journal says how to put the old ones back. From then on
there are only renames, so that neither a full disk nor a killed process can leave half a file. Removing the journal
commits the run; a journal that is still there is undone, by this run or by the next one.

Two site directories (transformers in one, peft in the other) have a journal each, and each is undone without the other.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from . import files, journal, lock
from .errors import PatcherError, Problem, from_os_error, leaving
from .journal import Entry
from .store import Store, names, sha256_of

UNDONE = "Everything was put back: nothing was changed."
DONE = {"install": "SelfAug is installed.", "revert": "SelfAug is gone from what this environment imports."}
HALFWAY = "Some files are between two states: the next install, revert or status undoes what is left."


@dataclass(frozen=True)
class Put:
    """Have ``path`` hold ``content``: bytes, the content and identity of another file, or None for no file at all.

    ``expect`` is the sha256 that the file must have right now (empty: no file); ``like`` a file whose mode and owner a
    new one takes.
    """

    store: Store
    path: str
    content: bytes | Path | None
    expect: str
    like: Path | None = None


@dataclass(frozen=True)
class MakeFolder:
    store: Store
    path: str


@dataclass(frozen=True)
class RemoveFolder:
    """Remove a folder and the bytecode in it. It stays if anything else is in it."""

    store: Store
    path: str


Operation = Union[Put, MakeFolder, RemoveFolder]


@contextlib.contextmanager
def locked(stores: Sequence[Store], wait: float = lock.WAIT_SECONDS) -> Iterator[list[str]]:
    """Hold these stores, recovered from any earlier crash; yields what the recovery did, as sentences."""
    with contextlib.ExitStack() as stack:
        for store in sorted(stores, key=lambda store: str(store.site)):
            store.check()
            stack.enter_context(lock.hold(store.root, wait))
        yield recover(stores)


def execute(
    verb: str,
    operations: Sequence[Operation],
    keep: Sequence[tuple[Store, str]] = (),
    check: Callable[[], None] | None = None,
) -> None:
    """Carry out all operations, or none. The stores must be locked.

    Args:
        verb: what the user asked for; goes into the journal.
        operations: in this order. Undone in the reverse order.
        keep: files (a path relative to the store's site directory) to keep among the store's originals.
        check: called when all is in place; if it raises, all is undone.

    Raises:
        PatcherError: with the state that things are in.
    """
    stores = list(dict.fromkeys([op.store for op in operations] + [store for store, _ in keep]))
    done: list[tuple[Store, Entry]] = []
    doing = "prepare the changes"
    try:
        entries = _prepare(operations, keep, stores)
        for store in stores:
            journal.write(store, verb, [entry for owner, entry in entries if owner == store])
        for store, entry in entries:
            doing = f"change {store.site / entry.path}"
            done.append((store, entry))
            _do(store, entry)
        if check is not None:
            check()
        doing = "finish"
        # If the process dies between two of these, the rest gets undone: the site directory with transformers must be
        # the last to say that it is patched, and the first to say that it is not.
        mine = {store: journal.has_model([entry for owner, entry in entries if owner == store]) for store in stores}
        for store in sorted(stores, key=lambda store: mine[store] == (verb == "install")):
            os.unlink(store.journal)
            files.sync(store.root)
    except BaseException as error:
        state = _roll_back(stores, done)
        if isinstance(error, OSError):
            raise PatcherError(from_os_error(error, doing), state=state) from error
        if isinstance(error, PatcherError):
            raise PatcherError(*error.problems, state=state) from error
        with leaving(state):
            raise
    for store in stores:
        # The run is committed; the next command removes what is left in the way of temporary files.
        with contextlib.suppress(OSError, PatcherError), leaving(DONE[verb]):
            tidy(store)


def recover(stores: Sequence[Store]) -> list[str]:
    """Undo an interrupted run, and remove its temporary files. The stores must be locked.

    Returns:
        What was undone, one sentence each; empty if all was in order.
    """
    notes = []
    journals = [(store, *journal.read(store)) for store in stores if os.path.exists(store.journal)]
    # The order in which the parts of a run are undone: on no path is transformers patched without its runtime.
    journals.sort(key=lambda item: journal.has_model(item[2]) == (item[1] == "revert"))
    for store, verb, entries in journals:
        try:
            with leaving(HALFWAY):
                left = [note for entry in reversed(entries) for note in _undo(store, entry)]
                store.journal.unlink()
        except OSError as error:
            raise PatcherError(from_os_error(error, f"undo an interrupted {verb}"), state=HALFWAY) from error
        notes += [f"An interrupted {verb} was found in {store.site}, and undone.", *left]
    for store in stores:
        try:
            tidy(store)
        except OSError as error:
            notes.append(f"Left for the next command to remove: {error.filename} ({error.strerror}).")
    return notes


def tidy(store: Store) -> None:
    """Remove what no receipt and no journal needs. The store must be locked."""
    receipt = store.receipt()
    kept = receipt.hashes() if receipt else set()
    for folder, needed in ((store.stage, set[str]()), (store.originals, kept)):
        for name in names(folder):
            if name not in needed:
                os.unlink(folder / name)
        if not needed and folder.is_dir():
            os.rmdir(folder)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(store.root / "journal.json.new")


def _prepare(
    operations: Sequence[Operation], keep: Sequence[tuple[Store, str]], stores: Sequence[Store]
) -> list[tuple[Store, Entry]]:
    for store in stores:
        _make(store, store.stage)
    for store, path in keep:
        source = store.place(path)
        _make(store, store.originals)
        target = store.originals / sha256_of(source)
        if not os.path.lexists(target):
            files.link(source, target)
    present: dict[tuple[Store, str], Path | None] = {}
    entries = []
    for slot, op in enumerate(operations):
        place = op.store.place(op.path)
        if not isinstance(op, Put):
            entries.append((op.store, Entry("make" if isinstance(op, MakeFolder) else "remove", op.path)))
            continue
        old, new = journal.slots(op.store, slot)
        before = present.get((op.store, op.path), place)
        if before is not None and os.path.lexists(before):
            files.link(before, old)
        if sha256_of(old) != op.expect:
            raise _changed_meanwhile(place)
        if isinstance(op.content, bytes):
            files.write(new, op.content, like=op.like or old, newer_than=old)
        elif op.content is not None:
            files.link(op.content, new)
        present[op.store, op.path] = new if op.content is not None else None
        entries.append((op.store, Entry("put", op.path, slot, sha256_of(old), sha256_of(new))))
    return entries


def _do(store: Store, entry: Entry) -> None:
    place = store.place(entry.path)
    if entry.kind == "make":
        os.mkdir(place)
        files.look_like(place, store.site)
    elif entry.kind == "remove":
        files.remove_folder(place)
    elif sha256_of(place) != entry.old:
        raise _changed_meanwhile(place)
    elif entry.new:
        os.replace(journal.slots(store, entry.slot)[1], place)
        files.sync(place.parent)
    else:
        os.unlink(place)


def _make(store: Store, folder: Path) -> None:
    """Make a folder where there is none, with the mode and owner of the site directory."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder)
        files.look_like(folder, store.site)


def _undo(store: Store, entry: Entry) -> list[str]:
    """Bring back what was there before. Done twice it does nothing more, so that undoing may itself be interrupted."""
    place = store.place(entry.path)
    if entry.kind == "make":
        files.remove_folder(place)
    elif entry.kind == "remove":
        with contextlib.suppress(FileNotFoundError):
            _make(store, place)
    elif place.suffix == ".pyc" and not _has_source(place):
        return []  # a cache that is gone, or of a file that is gone, is no loss
    elif not place.parent.is_dir():
        return [] if entry.old == "" else [f"The folder of {place} is gone: it was left as it is."]
    else:
        now = sha256_of(place)
        if now == entry.new and now != entry.old:
            if entry.old and not os.path.lexists(journal.slots(store, entry.slot)[0]):
                return [f"What {place} was before is lost: it was left as it is."]
            if entry.old:
                os.replace(journal.slots(store, entry.slot)[0], place)
                files.sync(place.parent)
            else:
                os.unlink(place)
        elif now != entry.old:
            return [f"{place} was changed by something else in the meantime, and was left as it is."]
    return []


def _has_source(bytecode: Path) -> bool:
    """Whether the folder of a compiled file is there, and the file that it was compiled from."""
    return bytecode.parent.is_dir() and (bytecode.parent.parent / f"{bytecode.name.split('.')[0]}.py").exists()


def _roll_back(stores: Sequence[Store], done: Sequence[tuple[Store, Entry]]) -> str:
    try:
        for store, entry in reversed(done):
            _undo(store, entry)
        for store in stores:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(store.journal)
    except (OSError, PatcherError, KeyboardInterrupt):
        return HALFWAY
    with contextlib.suppress(OSError, PatcherError, KeyboardInterrupt):
        for store in stores:
            tidy(store)
    return UNDONE


def _changed_meanwhile(place: Path) -> PatcherError:
    what = "a file changed while selfaug_patcher was at work"
    expected = "the file as it was when the command began"
    return PatcherError(Problem("changed-meanwhile", what, expected, str(place), "run the same command again"))
