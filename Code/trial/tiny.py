"""Tiny random models of a family, and the batches that the trial calls them with."""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

VOCABULARY = 97
# The names of any family: peft takes those that a model has.
ATTENTION = ["q_proj", "v_proj", "o_proj", "query_key_value", "kv_b_proj"]
MLP = ["down_proj", "dense_4h_to_h"]
# Of any tower for images, which the trial makes and never calls.
_VISION = {"depth": 1, "num_hidden_layers": 1, "num_heads": 4, "num_key_value_heads": 4, "out_hidden_size": 32,
           "embed_dim": 32, "image_size": 16, "patch_size": 4}  # fmt: skip
# Of any family: a config keeps what it has no use for.
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "full_attention_interval": 2,  # of both kinds of layer one, in a family that has two
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "final_logit_softcapping": 20.0,  # with none, or a scale of 1, a wrong head would be as good as the right one
    "logits_scaling": 4.0,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_class(name: str) -> Any:
    """The class that ``module:class`` names."""
    module, _, cls = name.partition(":")
    return getattr(importlib.import_module(module), cls)


def base(cls: Any) -> Any:
    """A random two-layer model in evaluation mode, with logits of some tens, so that a soft cap or a scale shows."""
    torch.manual_seed(0)
    model = cls(config(cls.config_class))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30)
    return model.eval()


def config(cls: Any, **others: Any) -> Any:
    """A config of the class with the trial's sizes, or ``others``; in one of images and text, those of each part."""
    sizes = {**_SIZES, **others}
    if hasattr(cls(), "kv_lora_rank"):  # latent attention has one key for each query
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    inside = [name for name, value in vars(cls()).items() if isinstance(value, PretrainedConfig)]
    parts = {name: {**sizes, **({} if "text" in name else _VISION)} for name in inside}
    made = cls(**sizes, **parts)
    if parts:  # how many frequencies turn with time, with height and with width, where a family tells them apart
        text = made.get_text_config()
        if not hasattr(text, "rope_parameters"):
            text.rope_scaling = {"rope_type": "default"}
        rope = text.rope_parameters if hasattr(text, "rope_parameters") else text.rope_scaling
        pairs = int(sizes["head_dim"] * rope.get("partial_rotary_factor", 1)) // 2
        rope["mrope_section"] = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    return made


def with_lora(model: nn.Module, fresh: bool = False, **options: Any) -> Any:
    """A copy of ``model`` with LoRA on attention and MLP, in training mode, away from its start unless ``fresh``."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    wanted = options.pop("target_modules", [*ATTENTION, *MLP])
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets = [name for name in linear if name.rpartition(".")[2] in wanted]  # a vision tower may have other layers
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**{"r": 4, "target_modules": targets, **options}))
    if not fresh:
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
    return tuned.train()


def batch(padding: str = "right") -> dict[str, Tensor]:
    """Three rows of 12 with prompts of 7, 6 and 5 tokens; ``padding`` "right", "left" or "none"."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (3, 12), generator=generator)
    mask = torch.ones_like(ids)
    if padding == "right":
        mask[1, 9:] = 0
        mask[2, 11:] = 0
    elif padding == "left":
        mask[1, :3] = 0
        mask[2, :1] = 0
    labels = ids.clone()
    for row, prompt in enumerate((7, 6, 5)):
        labels[row, :prompt] = -100
    labels = labels.masked_fill(mask == 0, -100)
    ids = ids.masked_fill(mask == 0, 0)
    inputs = {"input_ids": ids, "labels": labels}
    return inputs if padding == "none" else {**inputs, "attention_mask": mask}


def packed() -> dict[str, Tensor]:
    """Two rows, each with documents of 7 and 5 tokens that only ``position_ids`` tell apart."""
    ids = batch("none")["input_ids"][:2]
    labels = ids.clone()
    labels[:, :4] = labels[:, 7:9] = -100
    positions = torch.cat((torch.arange(7), torch.arange(5))).expand(2, -1)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


@contextlib.contextmanager
def settings(**variables: str) -> Iterator[None]:
    """Only these SELFAUG_* variables for a while, and the user's again afterwards. The reference is the model without
    adapters, although the trial's have weights before their first step.
    """
    variables = {"SELFAUG_REFERENCE": "base", **variables}
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SELFAUG")}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of the last backward pass, by parameter name, in float64; the model's own are cleared."""
    taken = {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return taken
