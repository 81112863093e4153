"""``.selfaug``: the folder in a site directory that holds the receipt, the originals and, during a run, a journal.

It begins with a dot so that nothing can import it, lies outside both packages so that ``pip uninstall`` of either
leaves it alone, and disappears with the last thing that it records. This module only reads; `transaction` writes.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from . import receipt as receipts
from .errors import PatcherError, Problem, from_os_error
from .families import targets
from .receipt import Receipt

RUNTIME = "selfaug"

# The folders that `install` makes.
FOLDER = re.compile(rf"{RUNTIME}(?:/{receipts.PACKAGE.pattern})?")

_OURS = re.compile(rf"{FOLDER.pattern}|{RUNTIME}/{receipts.MODULE.pattern}|\.selfaug/receipt\.json")
_COMPILED = re.compile(rf"(.+)/__pycache__/{receipts.BYTECODE.pattern}")


@dataclass(frozen=True)
class Store:
    """The ``.selfaug`` folder of one site directory, which need not exist."""

    site: Path

    @property
    def root(self) -> Path:
        return self.site / ".selfaug"

    @property
    def receipt_path(self) -> Path:
        return self.root / "receipt.json"

    @property
    def journal(self) -> Path:
        return self.root / "journal.json"

    @property
    def stage(self) -> Path:
        return self.root / "stage"

    @property
    def originals(self) -> Path:
        return self.root / "originals"

    @property
    def exists(self) -> bool:
        return os.path.lexists(self.root)

    def interrupted(self) -> bool:
        """Whether a run has begun here and not ended: it goes on in another process, or has to be undone."""
        return os.path.exists(self.journal)

    def needs_tidying(self) -> bool:
        """Whether an interrupted run left something here that this user may remove, or that has to be undone."""
        if not self.exists:
            return False
        self.check()
        inside = set(names(self.root))
        untidy = "receipt.json" not in inside or not inside <= {"receipt.json", "originals"}
        return untidy and (self.writable() or self.interrupted())

    def writable(self) -> bool:
        return os.access(self.root, os.W_OK | os.X_OK)

    def check(self) -> None:
        """Refuse a store that is not a plain folder: everything in it would be read and written somewhere else."""
        for folder in (self.root, self.stage, self.originals):
            if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
                raise receipts.damaged(str(folder), "not a plain folder")

    def receipt(self) -> Receipt | None:
        """The receipt, checked; None where there is none.

        Raises:
            PatcherError: it is damaged.
        """
        if not self.exists:
            return None
        self.check()
        content = read(self.receipt_path, receipts.MAX_BYTES + 1)
        return None if content is None else receipts.decode(content, str(self.receipt_path))

    def has(self, package: str) -> bool:
        """Whether a copy of this package lies in the site directory, as far as that may be read."""
        return os.path.isfile(self.site / package / "__init__.py")  # Path.is_file would raise

    def original(self, sha256: str) -> Path | None:
        """The kept file with this content; None if it is gone or no longer has that content."""
        path = self.originals / sha256
        content = read(path)
        return path if content is not None and digest(content) == sha256 else None

    def place(self, path: str) -> Path:
        """The file or folder ``path``, relative to the site directory.

        Raises:
            PatcherError: the path is none that SelfAug ever touches, or a link on the way leads out of the site
                directory. (A link at its end is no harm: it gets replaced, never written through.)
        """
        if not (_OURS.fullmatch(path) or _is_patched(path)):
            raise _outside(path, "not a file of SelfAug, nor one that it patches")
        full = self.site / path
        real = os.path.realpath(full.parent)
        if real != os.path.join(os.path.realpath(self.site), *Path(path).parent.parts):
            do = f"remove the link in {self.site / RUNTIME}, then run the same command again"
            raise _outside(str(full), f"a link leads to {real}", do if path.startswith(RUNTIME) else _REINSTALL)
        return full


def _is_patched(path: str) -> bool:
    """Whether SelfAug patches this file, or a file beside which this compiled one lies."""
    paths = {target.path for target in targets()}
    compiled = _COMPILED.fullmatch(path)
    return path in paths or (compiled is not None and compiled[1] in {each.rpartition("/")[0] for each in paths})


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read(path: Path, limit: int = 64 * 1024 * 1024) -> bytes | None:
    """The content of a plain file (or of a link to one), up to ``limit`` bytes; None where there is no such file.

    Raises:
        PatcherError: it is there and cannot be read.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            # Python makes room for as many bytes as are asked for
            return file.read(min(limit, os.fstat(file.fileno()).st_size + 1))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise PatcherError(from_os_error(error, f"read {path}")) from None


def content_of(source: bytes | Path) -> bytes:
    """Bytes as they are, or the content of a file that is known to be there."""
    return source if isinstance(source, bytes) else read(source) or b""


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no such folder.

    Raises:
        PatcherError: it is there and cannot be read.
    """
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PatcherError(from_os_error(error, f"read {folder}")) from None


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content; empty where there is no such file."""
    content = read(path)
    return "" if content is None else digest(content)


_REINSTALL = "reinstall the package, so that its folders are plain folders"


def _outside(path: str, seen: str, do: str = _REINSTALL) -> PatcherError:
    return PatcherError(
        Problem(
            id="outside-package",
            what="a file lies where SelfAug must not write",
            expected="plain folders below the site directory",
            found=f"{path}: {seen}",
            do=do,
        )
    )
