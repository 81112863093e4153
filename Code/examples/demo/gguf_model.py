"""Makes an ordinary model folder out of a GGUF file: config, tokenizer with chat template, and float32 weights.

    python Code/examples/demo/gguf_model.py FILE.gguf OUTPUT_DIR

The weights are those of the file, dequantised by transformers: the quantisation's error stays in them. Needs the
package ``gguf``.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

HEAD, EMBEDDING = "output.weight", "token_embd.weight"  # their names in a GGUF file
SAME = 0.1  # two quantised copies of one matrix differ by a few hundredths of its norm, two matrices by more than it


def load(file: Path) -> tuple[Any, PreTrainedModel]:
    """(tokenizer, model in float32 and eval mode) of a GGUF file, as transformers reads them. Such a model cannot be
    saved: transformers counts it as quantised.
    """
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return tokenizer, AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()


def ordinary(model: PreTrainedModel, embeddings: torch.Tensor | None = None) -> PreTrainedModel:
    """A model of the same class and with the same weights that can be saved.

    Args:
        embeddings: (vocabulary, hidden size), the matrix that embedding and head share. None: as in ``model``.
    """
    given = {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    if embeddings is not None:
        given["tie_word_embeddings"] = True
    config = type(model.config)(**given)
    config.architectures = [type(model).__name__]
    plain: PreTrainedModel = type(model)(config)
    weights = dict(model.state_dict())
    if embeddings is not None:
        names = [f"{name}.weight" for name, one in model.named_modules() if one in _both(model)]
        weights |= dict.fromkeys(names, embeddings)
    plain.load_state_dict(weights)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.eval()
    return plain


def shared_embeddings(file: Path, model: PreTrainedModel) -> torch.Tensor | None:
    """The matrix that embedding and head of the original model share, where the file holds that matrix twice: the copy
    with more bits. None if the file holds it once, or if the two are different matrices.
    """
    reader = importlib.import_module("gguf").GGUFReader(file)
    size = {str(one.name): int(one.n_bytes) for one in reader.tensors if one.name in (HEAD, EMBEDDING)}
    if len(size) < 2:
        return None
    embedding, head = (torch.as_tensor(one.weight.detach()) for one in _both(model))
    if embedding.shape != head.shape or (embedding - head).norm() > SAME * head.norm():
        return None
    return head if size[HEAD] > size[EMBEDDING] else embedding


def _both(model: PreTrainedModel) -> tuple[Any, Any]:
    return model.get_input_embeddings(), model.get_output_embeddings()


def build(file: Path, output: Path) -> str:
    """Write the model folder. Returns what was written, in words."""
    tokenizer, model = load(file)
    embeddings = shared_embeddings(file, model)
    ordinary(model, embeddings).save_pretrained(output)
    tokenizer.save_pretrained(output)
    tied = "" if embeddings is None else ", embedding and head tied"
    return f"{output}: {type(model).__name__}, float32{tied}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE.gguf")
    parser.add_argument("output", type=Path, metavar="OUTPUT_DIR")
    args = parser.parse_args()
    if not args.file.is_file():
        parser.error(f"there is no file {args.file}")
    print(build(args.file, args.output))


if __name__ == "__main__":
    main()
