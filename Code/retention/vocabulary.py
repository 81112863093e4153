"""The vocabulary size of the model on which an adapter was trained, read from the adapter's own files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from ..toolkit.files import read_json

# the axis that counts tokens, in the weights that peft saves for an embedding and for the head
EMBEDDING_AXES = {"weight": 0, "lora_embedding_A": 1, "lora_magnitude_vector": 0}
HEAD_AXES = {"weight": 0, "bias": 0, "lora_B": 0, "lora_magnitude_vector": 0}


def of_adapter(folder: Path, base: Any) -> int | None:
    """The number of tokens, if the adapter holds a weight with an entry per token. If the adapter only trains single
    tokens that ``base`` does not have, a number that includes them. Otherwise None.
    """
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    axes = [(embedding, EMBEDDING_AXES), (head, HEAD_AXES)]
    names = {name: known for name, one in base.named_modules() for layer, known in axes if one is layer}
    for key, shape in _shapes(folder):
        for name, known in names.items():
            parts = key.partition(f".{name}.")[2].split(".")
            part = next((part for part in parts if part in known or part.startswith("lora_")), "")
            if part in known and len(shape) > known[part]:
                return shape[known[part]]
    last = max(_trained_tokens(folder), default=-1)
    return last + 1 if last >= embedding.weight.shape[0] else None


def _shapes(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the adapter's weights. Yields nothing for a file that cannot be read: peft reports that."""
    import torch
    from safetensors import safe_open

    try:
        if (folder / "adapter_model.safetensors").is_file():
            with safe_open(str(folder / "adapter_model.safetensors"), "pt") as weights:
                yield from [(key, tuple(weights.get_slice(key).get_shape())) for key in list(weights.keys())]
        else:
            weights = torch.load(folder / "adapter_model.bin", map_location="cpu", weights_only=True)
            yield from [(key, tuple(weight.shape)) for key, weight in weights.items()]
    except Exception:
        return


def _trained_tokens(folder: Path) -> list[int]:
    """The ids of the single tokens that the adapter trains. The config holds a list, or lists by layer."""
    try:
        given = read_json(folder / "adapter_config.json").get("trainable_token_indices")
    except (OSError, Refusal, AttributeError):
        return []
    lists = given.values() if isinstance(given, dict) else [given]
    return [token for ids in lists if isinstance(ids, list) for token in ids if isinstance(token, int)]
