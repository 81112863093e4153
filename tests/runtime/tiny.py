"""A tiny random Qwen2 with LoRA, a batch, and what the loss and gradients must be (by the oracle)."""

from __future__ import annotations

import contextlib
import os

import numpy as np
import torch
from oracle import oracle
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
V = 61


def base(seed=0, **overrides):
    torch.manual_seed(seed)
    settings = {
        "vocab_size": V,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        **overrides,
    }
    return Qwen2ForCausalLM(Qwen2Config(**settings))


def with_lora(model, perturbed=True, std=0.5, autocast_adapter_dtype=True, **options):
    options = {"r": 4, "target_modules": ALL_LINEAR, **options}
    keyword = {} if autocast_adapter_dtype else {"autocast_adapter_dtype": False}  # peft 0.12
    model = get_peft_model(model, LoraConfig(**options), **keyword)
    if perturbed:
        perturb(model, std)
    return model.train()


def perturb(model, std=0.3):
    """Move whatever trains away from its start, where the KL is 0."""
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_A" not in name and "lora_embedding_B" not in name:
            noise = torch.randn(parameter.shape, generator=generator) * std * (0.1 if "modules_to_save" in name else 1)
            parameter.data += noise.to(parameter.dtype)


def batch(padding="right", prompts=(6, 4, 7), B=3, T=11, seed=2):
    """Prompt and answer rows; ``padding`` "right", "left" or None; three pad tokens in row 0."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (B, T), generator=generator)
    mask = torch.ones_like(ids)
    labels = ids.clone()
    for row, prompt in enumerate(prompts):
        labels[row, :prompt] = -100
    if padding == "right":
        mask[0, -3:] = 0
    elif padding == "left":
        mask[0, :3] = 0
    labels[mask == 0] = -100
    data = {"input_ids": ids, "labels": labels}
    return data if padding is None else {**data, "attention_mask": mask}


def longer(padding="right", **options):
    """A batch whose prompts have 8 tokens or more. The reference pass ends with the prompts, and on some CPUs bfloat16
    rounds attention over fewer tokens otherwise than attention over the whole row: a KL of 5e-5.
    """
    return batch(padding, prompts=(8, 10, 9), T=14, **options)


@contextlib.contextmanager
def settings(**variables):
    before = dict(os.environ)
    os.environ.update({name.upper(): str(value) for name, value in variables.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def logits_of(model, data):
    """Full logits in training mode, LoRA on, with grad; no labels, so stock."""
    return model(**{name: value for name, value in data.items() if name not in ("labels", "num_items_in_batch")}).logits


def base_logits(model, data):
    """Full logits by peft's own switch, in eval mode, which leaves gradients and modes as they were."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    with torch.no_grad(), model.disable_adapter():
        found = logits_of(model, data)
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is p for p in trainable))
    model.train()
    return found


def expected(model, data, reference=None, num_items=None, row_of=None, real=None, **options):
    """(the oracle's answer, gradients by name): the oracle's d loss / d logits, carried back by the network itself."""
    logits = logits_of(model, data)
    reference = base_logits(model, data) if reference is None else reference
    real = data.get("attention_mask", torch.ones_like(data["labels"])) if real is None else real
    answer = oracle(
        logits.detach().double().numpy(),
        reference.double().numpy(),
        data["labels"].numpy(),
        real.numpy(),
        num_items=num_items,
        row_of=None if row_of is None else np.asarray(row_of),
        **options,
    )
    logits.backward(torch.from_numpy(answer.grad).to(logits.dtype))
    return answer, taken_gradients(model)


def taken_gradients(model):
    found = {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def worst_error(found, wanted):
    """The largest relative error of any gradient tensor; a tensor that is zero must be zero on both sides."""
    assert found.keys() == wanted.keys()
    scale = max(g.norm() for g in wanted.values())
    return max(((found[n] - g).norm() / max(g.norm(), 1e-6 * scale)).item() for n, g in wanted.items())
