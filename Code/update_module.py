"""The original project's command, ``python update_module.py``: does what ``python -m selfaug_patcher install`` does."""

# Parsed by whatever interpreter the user has, as selfaug_patcher/__main__.py, which says what is wrong with it.
import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from selfaug_patcher.__main__ import main  # type: ignore[attr-defined]  # it imports main for a new Python only

    sys.exit(main(["install"] + sys.argv[1:]))  # noqa: RUF005
