"""Receipts and journals, broken at random, by the million: none raises anything but the patcher's own error, and none
has a file outside the site directory written.

    python tests/fuzz_records.py --receipts 2000000 --journals 200000
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from selfaug_patcher import receipt
from selfaug_patcher.errors import PatcherError
from selfaug_patcher.pins import TARGETS
from selfaug_patcher.receipt import Original, Receipt
from selfaug_patcher.store import Store
from selfaug_patcher.transaction import recover

HASH = "0123456789abcdef" * 4
MODULES = ("hooks.py", "kit/part.py")
PIECES = [
    *(b"../", b"/etc/passwd", b"\\u002e\\u002e/", b"\x00", b"\xff", b"\\ud800", b"null", b"[]", b"{}", b"1e999", b"-1"),
    *(
        b"NaN",
        b'"',
        b",",
        b":",
        b"}",
        b"]",
        b"true",
        b"selfaug",
        HASH.encode(),
        b"\\n",
        b"9" * 5000,
        b"[" * 3000,
        b"put",
    ),
]


def broken(random_: random.Random, content: bytes) -> bytes:
    """The content with a few pieces cut out, repeated, exchanged or replaced by trouble."""
    for _ in range(random_.randint(1, 4)):
        start = random_.randrange(len(content) + 1)
        end = min(len(content), start + random_.choice((0, 1, 1, 2, 8, 64)))
        piece = random_.choice(
            (b"", random_.choice(PIECES), random_.randbytes(random_.randint(1, 4)), content[end:start])
        )
        content = content[:start] + piece + content[end:]
    return content


def receipts(random_: random.Random, count: int) -> int:
    original = Original("5.23.0", HASH, HASH[::-1], {"modeling_qwen2.cpython-311.pyc": HASH})
    valid = receipt.encode(
        Receipt("0.1.0", {target.name: original for target in TARGETS}, dict.fromkeys(MODULES, HASH))
    )
    read = 0
    for _ in range(count):
        try:
            receipt.decode(broken(random_, valid), "receipt.json")
            read += 1
        except PatcherError:
            pass
    return read


def journals(random_: random.Random, count: int, folder: Path) -> int:
    site = folder / "site"
    paths = [f"selfaug/{name}" for name in MODULES] + [".selfaug/receipt.json", *(target.path for target in TARGETS)]
    entries = [{"kind": "put", "path": path, "slot": 1, "old": "", "new": HASH} for path in paths]
    entries += [{"kind": "make", "path": path, "slot": 0, "old": "", "new": ""} for path in ("selfaug", "selfaug/kit")]
    valid = json.dumps({"verb": "install", "entries": entries}).encode()
    (folder / "victim").write_text("precious")
    read = 0
    for _ in range(count):
        (site / ".selfaug").mkdir(parents=True, exist_ok=True)
        (site / ".selfaug" / "journal.json").write_bytes(broken(random_, valid))
        try:
            recover([Store(site)])
            read += 1
        except PatcherError:
            pass
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["site", "victim"], names
    assert (folder / "victim").read_text() == "precious"
    return read


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--receipts", type=int, default=200_000)
    parser.add_argument("--journals", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random_ = random.Random(options.seed)
    start = time.monotonic()
    read = receipts(random_, options.receipts)
    print(f"receipts: {options.receipts} broken ones, {read} still valid, the others refused, no other error")
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None))
    try:
        read = journals(random_, options.journals, folder)
    finally:
        shutil.rmtree(folder)
    print(f"journals: {options.journals} broken ones, {read} still valid, the others refused, nothing written outside")
    print(f"{time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
