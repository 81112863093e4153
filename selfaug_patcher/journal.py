"""What a run is about to do in one site directory, written down before it begins, so that it can be undone."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import files, json_text
from .receipt import SHA256, damaged
from .store import FOLDER, RUNTIME, Store
from .store import read as read_file

_MAX_SIZE = 4 * 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """One line of a journal. ``old`` and ``new`` are sha256 (empty: no file); their files are in slot ``slot``."""

    kind: str
    path: str
    slot: int = 0
    old: str = ""
    new: str = ""


def write(store: Store, verb: str, entries: Sequence[Entry]) -> None:
    """Write the journal. Until it is removed, whichever patcher finds it undoes the run."""
    new = store.root / "journal.json.new"
    files.write(new, json.dumps({"verb": verb, "entries": [vars(entry) for entry in entries]}).encode())
    files.sync(store.stage)
    os.replace(new, store.journal)
    files.sync(store.root)


def read(store: Store) -> tuple[str, list[Entry]]:
    """(verb, entries).

    Raises:
        PatcherError: it is no journal of ours.
    """
    try:
        data = json_text.parse(read_file(store.journal, _MAX_SIZE) or b"")
        entries = [Entry(**entry) for entry in data["entries"]]
        for entry in entries:
            hashes = all(sha256 == "" or SHA256.fullmatch(sha256) for sha256 in (entry.old, entry.new))
            if entry.kind not in ("put", "make", "remove") or type(entry.slot) is not int or not hashes:
                raise ValueError(f"entry {entry!r:.100}")
            store.place(entry.path)
            if (entry.kind != "put") != bool(FOLDER.fullmatch(entry.path)):
                raise ValueError(f"{entry.kind} {entry.path!r:.100}")
        if data["verb"] not in ("install", "revert"):
            raise ValueError(f"verb {data['verb']!r:.40}")
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(str(store.journal), str(error)[:200]) from None
    return data["verb"], entries


def slots(store: Store, slot: int) -> tuple[Path, Path]:
    """Where the old and the new file of an entry lie while the run lasts."""
    return store.stage / f"{slot}.old", store.stage / f"{slot}.new"


def has_model(entries: Sequence[Entry]) -> bool:
    """Whether they are about the site directory with transformers and the runtime."""
    return any(entry.path.split("/")[0] in ("transformers", RUNTIME) for entry in entries)
