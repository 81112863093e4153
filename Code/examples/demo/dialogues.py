"""The two commands of SA-SFT: the model writes dialogues with itself, and the task data is mixed with them."""

from __future__ import annotations

from pathlib import Path

MODULE = ["-m", "selfaug_patcher", "run", "-m", "selfaug.self_dialogue"]  # patches nothing on disk


def generate(model: str, out: Path, count: int, answer_tokens: int, seed: int) -> list[str]:
    """The arguments with which ``selfaug.self_dialogue`` writes ``count`` dialogues."""
    arguments = ["generate", "--model", model, "--count", str(count), "--seed", str(seed)]
    return [*arguments, "--batch", "24", "--answer-tokens", str(answer_tokens), "--out", str(out), "--overwrite"]


def mix(task: Path, dialogues: Path, out: Path, share: float, seed: int) -> list[str]:
    """The arguments with which ``selfaug.self_dialogue`` mixes a file whose share of dialogues is ``share``."""
    arguments = ["mix", "--task", str(task), "--dialogues", str(dialogues), "--ratio", f"{share:g}"]
    return [*arguments, "--seed", str(seed), "--overwrite", "--out", str(out)]
