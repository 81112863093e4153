"""Millions of damaged patch files and pin tables: nothing but a PatcherError may come out of them.

    python tests/fuzz_patches.py [--inputs 3000000] [--seed 0]

What is accepted must be harmless: a target inside a package, apply and reverse inverse to each other. An input that
breaks a rule is printed and ends the run with exit code 1; so does one that takes longer than a second.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from selfaug_patcher import pins, udiff  # noqa: E402
from selfaug_patcher.errors import PatcherError  # noqa: E402

# One input in this many is a pin table: they take a hundred times as long, most of it the file system.
TABLE_EVERY = 500
SLOW_SECONDS = 1.0
PIECES = [
    "@@ -1,2 +1,3 @@\n", "@@ -0,0 +1 @@\n", "@@ -1 +1 @@", "@@", "--- a/x.py\n", "+++ b/x.py\n", "--- a/../x.py\n",
    "\\ No newline at end of file\n", "\n", " \n", "+\n", "-\n", "\r\n", "\0", "\ud800", "\u2028", "\x85", "\f", "é",
    "../", "/etc/passwd", "..\\", "~", "Subject: x\n", "Applies-To:", "9" * 30, "-1", "+" * 400, " a\n" * 90, "[" * 60,
    '"', "}", "]", ",", "null", "1e999", "NaN", '"note": "",', '"patch": "../../x-1.patch"', "\\u0000", "{",
]  # fmt: skip


def damage(text: str, chance: random.Random) -> str:
    """A few random edits: delete, repeat, move, swap in a piece that means something, change a character."""
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 9))):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice((0, 1, 1, 2, 5, 20, 80, 400)))
        kind = chance.randrange(6)
        if kind == 0:
            text = text[:start] + text[end:]
        elif kind == 1:
            text = text[:end] + text[start:end] + text[end:]
        elif kind == 2:
            place = chance.randrange(len(text) + 1)
            text = text[:place] + text[start:end] + text[place:]
        elif kind == 3:
            text = text[:start] + chance.choice(PIECES) + text[end:]
        elif kind == 4:
            text = (
                text[:start] + chr(chance.choice((chance.randrange(128), chance.randrange(0x3000)))) + text[start + 1 :]
            )
        else:
            lines = text.split("\n")
            first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
            lines[first], lines[second] = lines[second], lines[first]
            text = "\n".join(lines)
    return text


def stock_for(text: str, chance: random.Random) -> bytes:
    """A file that has the pre-images of a patch in it, mostly: once, twice, with something before and between."""
    lines = [line[1:] for line in text.split("\n") if line[:1] in (" ", "-") and not line.startswith("---")]
    filler = ["x\n"] * chance.randrange(3)
    whole = "".join([*filler, *(line + "\n" for line in lines), *filler])
    return (whole * chance.choice((1, 1, 1, 1, 2))).encode("utf-8", "replace")


def try_patch(text: str, stock: bytes) -> str:
    try:
        patch = udiff.parse(text, "x.patch")
    except PatcherError as error:
        return error.problems[0].id
    assert not patch.target.startswith("/")
    assert not {"", ".", ".."} & set(patch.target.split("/"))
    assert patch.target.endswith(".py")
    try:
        patched = udiff.apply(patch, stock)
    except PatcherError as error:
        return error.problems[0].id
    assert patched != stock
    assert udiff.reverse(patch, patched) == stock
    return "applied and reversed"


def try_table(root: Path, text: str) -> str:
    (root / "pins.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        table = pins.load(root)
    except PatcherError as error:
        return error.problems[0].id
    for pin in table.pins:
        assert (root / pin.patch).resolve().parent.parent == root.resolve()
        assert len(pin.stock_sha256) == len(pin.patched_sha256) == 64
    return "table read"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    table = pins.load()
    seeds = [(table.root / name).read_text() for name in table.patches]
    seeds += ["--- a/p/f.py\n+++ b/p/f.py\n@@ -1,2 +1,3 @@\n one\n+new\n two\n@@ -9,2 +10,2 @@\n a\n-b\n+c\n"] * 6
    table_text = (table.root / "pins.json").read_text()
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "patches"
        for name in table.patches:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text((table.root / name).read_text())
        for number in range(1, options.inputs + 1):
            text = damage(table_text if number % TABLE_EVERY == 0 else chance.choice(seeds), chance)
            began = time.process_time()
            try:
                is_table = number % TABLE_EVERY == 0
                outcomes[try_table(root, text) if is_table else try_patch(text, stock_for(text, chance))] += 1
            except Exception as error:
                print(f"\ninput {number} (seed {options.seed}): {type(error).__name__}: {error}\n{text!r}")
                return 1
            slowest = max(slowest, time.process_time() - began)
            if slowest > SLOW_SECONDS:
                print(f"\ninput {number} (seed {options.seed}) took {slowest:.1f} s\n{text!r}")
                return 1
            if number % 10_000 == 0 and sys.stderr.isatty():
                sys.stderr.write(f"\r{number:,} of {options.inputs:,}")
    print(f"{options.inputs:,} inputs, seed {options.seed}, slowest {slowest * 1000:.0f} ms")
    for outcome, count in outcomes.most_common():
        print(f"{count:>12,}  {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
