"""Millions of damaged seams, source files and pin tables: nothing but a PatcherError may come out of them.

    python tests/fuzz_patches.py [--inputs 3000000] [--seed 0]

What is accepted must be harmless: placing a seam and taking it out are inverse to each other. An input that
breaks a rule is printed and ends the run with exit code 1; so does one that takes longer than a second.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from selfaug_patcher import families, pins, seam  # noqa: E402
from selfaug_patcher.errors import PatcherError  # noqa: E402

# One input in this many is a pin table: they take a hundred times as long, most of it the file system.
TABLE_EVERY = 500
SLOW_SECONDS = 1.0
PIECES = [
    "\n", "\r\n", "\r", "\0", "\ud800", "\u2028", "\x85", "\x0c", "é", "#", "\\", '"""', "'", "(", ")", ":", ";", ",",
    "[" * 60,
    "class DemoForCausalLM(A):\n    pass\n", "class ", "import x\n", "from .configuration_demo import X\n",
    "@decorator\n", "SelfAligned", "selfaug", "+", "-", "+#\n", "CLASS", "CONFIGURATION", "(...)",
    "@@\n", "Subject: x\n", "\n\n",
    "1.0.0-9", " (yanked)", ", ", "  ", "transformers:qwen2", "a" * 64, "9" * 30, "-1",
]  # fmt: skip
DEMO = families.model("demo", "DemoForCausalLM", "1.0")
SOURCE = """import torch
from .configuration_demo import (
    DemoConfig,
)


@auto_docstring
class DemoForCausalLM(DemoPreTrainedModel, GenerationMixin):  # a model
    _tied = ["a"]

    def forward(self):
        return '''x'''
"""


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


def try_seam(text: str) -> str:
    try:
        seam.parse(text, "x.seam")
    except PatcherError as error:
        return f"seam: {error.problems[0].id}"
    return "seam read"


def try_source(ours: seam.Seam, text: str) -> str:
    stock = text.encode("utf-8", "surrogatepass")
    try:
        patched = seam.place(ours, DEMO, stock)
    except PatcherError as error:
        return f"source: {error.problems[0].id}"
    assert patched != stock
    assert seam.remove(ours, DEMO, patched) == stock
    compile(patched, "x.py", "exec")
    return "placed and taken out"


def try_table(root: Path, text: str) -> str:
    (root / "pins.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        table = pins.load(root)
    except PatcherError as error:
        return error.problems[0].id
    for pin in table.pins:
        assert len(pin.stock_sha256) == len(pin.patched_sha256) == 64
    return "table read"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    table = pins.load()
    seams = [(table.root / f"{name}.seam").read_text() for name in table.seams]
    table_text = (table.root / "pins.txt").read_text()
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(table.root, Path(folder) / "patches"))
        for number in range(1, options.inputs + 1):
            is_table, is_source = number % TABLE_EVERY == 0, number % 2 == 0
            seed = table_text if is_table else SOURCE if is_source else chance.choice(seams)
            text = damage(seed, chance)
            began = time.process_time()
            try:
                if is_table:
                    outcome = try_table(root, text)
                else:
                    outcome = try_source(table.seams["transformers"], text) if is_source else try_seam(text)
                outcomes[outcome] += 1
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
