"""Install SelfAug into this environment, run `trl_user.py` unchanged, revert: `python tests/trainers/installed.py`.

The log has to have SelfAug's KL, and every file of transformers and peft has to be what it was, byte for byte.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def digest():
    """One sha256 over every Python file of both packages, and whether `selfaug` lies beside them."""
    total = hashlib.sha256()
    for name in ("transformers", "peft"):
        folder = Path(importlib.util.find_spec(name).origin).parent
        for path in sorted(folder.rglob("*.py")):
            total.update(str(path).encode() + path.read_bytes())
    return total.hexdigest(), (folder.parent / "selfaug").exists()


def patcher(command):
    subprocess.run([sys.executable, "-m", "selfaug_patcher", command, "--python", sys.executable], cwd=ROOT, check=True)


def script():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "trl_user.py")], cwd=HERE, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith("{'loss'")]


def main():
    before, stock = digest(), script()
    patcher("install")
    try:
        patched = script()
    finally:
        patcher("revert")
    print(*stock[:1], *patched, sep="\n")
    kl = [float(found[1]) for found in map(re.compile(r"'selfaug/kl': '?([\d.e-]+)").search, patched) if found]
    assert len(kl) == len(patched) == 3, patched
    assert kl[-1] > kl[0] > 0
    assert not any("selfaug" in line for line in stock)
    assert digest() == before
    print(f"KL {kl}; transformers and peft as before: sha256 {before[0][:16]}…")


if __name__ == "__main__":
    main()
