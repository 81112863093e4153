"""The folder of a tiny random chat model of any family, with a tokenizer that makes things hard for the tools."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "Code" / "examples"
sys.path[:0] = [str(EXAMPLES), str(Path(__file__).resolve().parent)]
