"""Scales a LoRA adapter, which interpolates between the base model and the tuned model. Scales B alone.

python scale_adapter.py SOURCE TARGET FACTOR
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def scale(source: Path, target: Path, factor: float) -> None:
    """Write the adapter that changes every weight by ``factor`` times as much as ``source`` does."""
    target.mkdir(parents=True, exist_ok=True)
    weights = load_file(source / WEIGHTS)
    if not any(".lora_B." in name for name in weights):
        raise SystemExit(f"{source / WEIGHTS} holds no lora_B: expected a LoRA adapter as peft saves it")
    scaled = {name: tensor * factor if ".lora_B." in name else tensor for name, tensor in weights.items()}
    save_file(scaled, target / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(source / CONFIG, target / CONFIG)


if __name__ == "__main__":
    scale(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
