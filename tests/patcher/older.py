"""What the SelfAug of October 2026 left in an environment: files and the receipt, in the form that it had then.

The form was compared with what that release really wrote. Its patches were diffs; the patch of peft put a switch into
the body of `LoraLayer`, or, later, the base class of today.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

SWITCH = """    # >>> SelfAug (arXiv 2509.03934), added by selfaug_patcher; undo: python -m selfaug_patcher revert
    # True while SelfAug's reference pass runs: this layer then answers as if it had no LoRA, with nothing merged,
    # unmerged or frozen. False at all other times.
    selfaug_reference = False

    @property
    def disable_adapters(self) -> bool:
        return self.selfaug_reference or self._disable_adapters

    # <<< SelfAug
"""


def with_switch(stock: bytes) -> bytes:
    """A LoRA layer as the diff of SelfAug 0.1 patched it first."""
    opening = b"class LoraLayer(BaseTunerLayer):\n"
    assert stock.count(opening) == 1
    return stock.replace(opening, opening + SWITCH.encode())


def install(
    site: Path, versions: Mapping[str, str], patched: Mapping[str, bytes], runtime: Mapping[str, bytes]
) -> None:
    """Patch these files (target name to new content) and put the runtime beside them, with a receipt for all."""
    paths = {
        "transformers:qwen2": site / "transformers/models/qwen2/modeling_qwen2.py",
        "peft:lora": site / "peft/tuners/lora/layer.py",
    }
    originals = site / ".selfaug" / "originals"
    originals.mkdir(parents=True)
    targets = {}
    for name, content in patched.items():
        stock = paths[name].read_bytes()
        os.link(paths[name], originals / sha256(stock))
        new = paths[name].with_suffix(".new")
        new.write_bytes(content)
        new.chmod(paths[name].stat().st_mode & 0o777)
        new.replace(paths[name])
        targets[name] = {
            "version": versions[name.split(":")[0]],
            "stock_sha256": sha256(stock),
            "patched_sha256": sha256(content),
            "bytecode": {},
        }
    for name, content in runtime.items():
        (site / "selfaug" / name).parent.mkdir(parents=True, exist_ok=True)
        (site / "selfaug" / name).write_bytes(content)
    receipt = {
        "format": 1,
        "selfaug": "0.1.0",
        "targets": targets,
        "runtime": {name: sha256(content) for name, content in runtime.items()},
    }
    text = json.dumps(receipt, indent=2, sort_keys=True) + "\n"
    (site / ".selfaug" / "receipt.json").write_text(text)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
