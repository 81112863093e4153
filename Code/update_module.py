"""The original project's command, ``python update_module.py``: does what ``python -m selfaug_patcher install`` does."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from selfaug_patcher.cli import main

    sys.exit(main(["install", *sys.argv[1:]]))
