"""Hidden states on disk: one file per sample. Files are memory-mapped and checked when read; their size is limited.

    DIR/FINGERPRINT/model.json     which model, for people
    DIR/FINGERPRINT/head.pt        its head, for full fine-tuning (written by `build` only)
    DIR/FINGERPRINT/built          present: `build` filled this folder, and nothing evicts from it
    DIR/FINGERPRINT/ab/KEY.ref     64 bytes of header, then (n, H) numbers in float16, bfloat16 or float32

Files are written under another name and moved into place, so a reader sees a whole entry or none, whoever else writes.
Each file is checked against its key and a checksum; a file that fails is deleted and counts as missing.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAGIC = b"SELFAUG1"
HEADER = struct.Struct("<8sBBIII32s10x")  # magic, stored dtype, dtype of the states, n, H, crc32, key
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BYTES = (2, 2, 4, 8)
_RESCAN = 256  # entries that are written before the folder is measured again, because other processes write, too


class Entries:
    """The entries of one model in ``folder``, which several processes may use at once."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit  # bytes, for the folders of all models together
        self.since = time.time()
        self.size: int | None = None
        self.written = 0
        self.full = False

    def get(self, key: bytes, n: int, H: int) -> Tensor | None:
        """(n, H) states of a sample, as :meth:`put` has rounded them. None if the file is missing or damaged."""
        path = self._path(key)
        try:
            content = np.memmap(path, dtype=np.uint8, mode="c")
        except (OSError, ValueError):  # an empty file cannot be mapped
            return None
        if len(content) > HEADER.size:
            magic, stored, original, rows, width, checksum, owner = HEADER.unpack(content[: HEADER.size].tobytes())
            payload = content[HEADER.size :]
            if (
                (magic, rows, width, owner) == (MAGIC, n, H, key)
                and max(stored, original) < len(DTYPES)
                and len(payload) == n * H * BYTES[stored]
                and zlib.crc32(payload.data) == checksum
            ):
                self._used(path)
                return torch.from_numpy(payload).view(DTYPES[stored]).view(n, H).to(DTYPES[original])
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def put(self, key: bytes, states: Tensor, autocast: torch.dtype | None = None) -> bool:
        """Store (n, H) states. False if the limit is reached and nothing may be evicted, or if the disk refuses.

        Half precision is stored as it is. float32 is rounded to float16, with an error of at most 2**-11 of a number
        (3e-8 for a number below 6e-5). If a number is beyond the range of float16, float32 is stored.

        Args:
            autocast: the dtype of the autocast that is on. float32 is rounded to that instead, as the head will do. To
                round to float16 and then to bfloat16 would be another number than to round once.
        """
        stored = states.to(autocast or torch.float16) if states.dtype in (torch.float32, torch.float64) else states
        if not stored.isfinite().all():
            stored = states.float()
        stored = stored.cpu().contiguous()
        payload = stored.view(torch.uint8).numpy().tobytes()
        n, H = states.shape
        if not self._room(HEADER.size + len(payload)):
            return False
        codes = DTYPES.index(stored.dtype), DTYPES.index(states.dtype)
        path = self._path(key)
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(HEADER.pack(MAGIC, *codes, n, H, zlib.crc32(payload), key) + payload)
            os.replace(draft, path)
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink()
            self.full = True
            return False
        self.size = (self.size or 0) + HEADER.size + len(payload)
        self.written += 1
        return True

    def _path(self, key: bytes) -> Path:
        return self.folder / key.hex()[:2] / f"{key.hex()}.ref"

    def _used(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # another process may have evicted it; the mapping stays valid
            if path.stat().st_mtime < self.since:
                os.utime(path)

    def _room(self, needed: int) -> bool:
        """Whether ``needed`` bytes may be written. Evicts entries for that, the oldest first, but none that a run has
        used since this one started: in an epoch, the oldest entry is the one that is read next.
        """
        if self.full:
            return False
        if self.size is None or self.written % _RESCAN == 0 or self.size + needed > self.limit:
            files = sorted(self._files())
            self.size = sum(size for _, size, _, _ in files)
            for modified, size, path, evictable in files:
                if self.size + needed <= self.limit or modified >= self.since:
                    break
                if evictable:
                    with contextlib.suppress(OSError):
                        path.unlink()
                    self.size -= size
        self.full = self.size + needed > self.limit
        return not self.full

    def _files(self) -> Iterator[tuple[float, int, Path, bool]]:
        """(modified, bytes, path, may be evicted) of every entry of every model."""
        for path in self.folder.parent.glob("*/*/*.ref*"):
            try:
                status = path.stat()
            except OSError:
                continue
            yield status.st_mtime, status.st_size, path, not (path.parent.parent / "built").exists()
