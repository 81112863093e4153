"""The study's modules import each other, and the demo's, by plain name, as `python Code/examples/study` has them do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "Code" / "examples" / name) for name in ("study", "demo")]


@pytest.fixture
def record():
    """Makes the record of a run: 4 instructions, 5 questions, every figure from the arguments."""

    def make(arm, seed, kl=0.5, exact_match=(1, 1, 0, 0, 1), **training):
        spent = {"steps": 48, "cpu_seconds": 96.0, "cpu_per_step": 2.0, "peak_mb": 1500, **training}
        return {
            "arm": arm,
            "seed": seed,
            "setting": {"train": 96, "model": "small", "task": "made-up entities"},
            "settings": {},
            "arguments": [],
            "versions": {"torch": "2.13.0"},
            "training": {} if arm == "base" else spent,
            "log": {},
            "general": {
                "kl": [0.0] * 4 if arm == "base" else [kl, kl + 0.1, kl - 0.1, kl],
                "reverse_kl": [kl] * 4,
                "top1": [0.8, 0.7, 0.9, 0.8],
                "length": [10, 64, 20, 30],
                "ended": [1, 0, 1, 1],
                "one_word": [0, 0, 0, 1],
            },
            "task": {
                "exact_match": list(exact_match),
                "contains": list(exact_match),
                "f1": list(exact_match),
                **({} if arm == "base" else {"input_kl": [0.3] * 3}),  # measured on fewer questions
                "answerable": [1, 1, 1, 1, 0],
            },
        }

    return make
