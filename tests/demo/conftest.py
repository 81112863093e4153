"""The demo's modules import each other by plain name, as they do when `python Code/examples/demo` runs them."""

from __future__ import annotations

import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "Code" / "examples"
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "demo")]
