"""What is measured: some layers of a real Qwen2.5 with LoRA, one batch, and the variants of a step."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from types import MethodType
from typing import Any, Callable

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from selfaug import family, loss
from selfaug.check import cost
from selfaug.labels import shifted
from selfaug.reference import decoder, switch

SHAPES: dict[str, dict[str, Any]] = {  # Qwen/Qwen2.5-…/config.json
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
    "72B": {"hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
            "num_key_value_heads": 8, "vocab_size": 152064, "tie_word_embeddings": False},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},  # to try a command
    "tiny untied": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                    "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": False},
}  # fmt: skip
Variant = Callable[[Any, "dict[str, Tensor]"], Tensor]  # from the model and a batch to the loss
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = 0.85  # share of the tokens
ECONOMY = {"selfaug_every": "4", "selfaug_sample": "0.25", "selfaug_sample_by": "shift"}
STEPS = {"economy": 4}  # by variant, how many micro-batches in a row make one measurement; else one


def model(shape: str, layers: int | None, checkpointing: bool, dtype: torch.dtype = torch.float32) -> Any:
    """LoRA r=8 on all linear layers, random weights, training mode."""
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(
        SHAPES[shape], use_cache=False, max_position_embeddings=32768, attn_implementation="sdpa"
    )
    if layers:
        settings["num_hidden_layers"] = layers
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        base = Qwen2ForCausalLM(Qwen2Config(**settings))
    finally:
        torch.set_default_dtype(before)
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    tuned = get_peft_model(base, LoraConfig(r=8, target_modules=LINEAR_LAYERS), autocast_adapter_dtype=False)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    return tuned.train()


def batch(T: int, vocabulary: int) -> dict[str, Tensor]:
    """One row of T tokens, of which the first 85% are prompt."""
    ids = torch.randint(0, vocabulary, (1, T), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[:, : int(PROMPT * T)] = -100
    return {"input_ids": ids, "labels": labels}


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Environment variables for a while, named in lower case."""
    before = {name.upper(): os.environ.get(name.upper()) for name in variables}
    os.environ.update({name.upper(): value for name, value in variables.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def supervised(data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Indices and next labels of the supervised positions."""
    next_labels = shifted(data["labels"])[0]
    index = (next_labels != -100).nonzero().squeeze(-1)
    return index, next_labels[index]


def aligned(data: dict[str, Tensor]) -> int:
    """The number of aligned positions."""
    return int((data["labels"] == -100).sum())


def stock(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """transformers' own forward, without SelfAug's wrapper."""
    inner = peft_model.base_model.model
    return _loss_of(family.stock_forward(inner)(inner, **data))


def off(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """The patched packages with SELFAUG=0."""
    with environment(selfaug="0"):
        return _loss_of(peft_model(**data))


def stock_fused(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """No SelfAug: the stock loss in chunks of supervised positions, as TRL's and Liger's fused heads compute it."""
    mean: Tensor = cost.fused(peft_model.base_model.model, data)
    return mean


def fused_trl(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """No SelfAug: the stock loss of TRL's ``SFTTrainer``, from its fused head with the fields that it asks for."""
    add = importlib.import_module("trl.trainer.utils").add_fused_lm_head
    inner = peft_model.base_model.model
    with environment(selfaug="0"), _replaced_forward(inner):
        add(inner, outputs=("log_probs", "entropy", "is_top1"))
        outputs = peft_model(**data, fused_lm_head=True)
    mean: Tensor = -outputs.log_probs.sum() / outputs.label_mask.sum()
    return mean


def fused_liger(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """No SelfAug: the stock loss of Liger's forward, its fused head and none of its other kernels."""
    inner = peft_model.base_model.model
    with environment(selfaug="0"), _replaced_forward(inner):
        inner.forward = MethodType(importlib.import_module("liger_kernel.transformers.model.qwen2").lce_forward, inner)
        return _loss_of(peft_model(**data))


@contextlib.contextmanager
def _replaced_forward(inner: Any) -> Iterator[None]:
    """Within, another library may put its forward on this instance. After, the forward of the class is in force."""
    try:
        yield
    finally:
        vars(inner).pop("forward", None)


def original(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """The authors' algorithm in our words: full logits of both passes, softmax of both and log-softmax of one."""
    inner = peft_model.base_model.model
    with switch.switched_off(inner):
        reference_logits = family.stock_forward(inner)(inner, data["input_ids"]).logits.float()
    logits = family.stock_forward(inner)(inner, data["input_ids"]).logits.float()
    labels = data["labels"].to(logits.device)
    nll = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    p, q = logits.softmax(-1), reference_logits.softmax(-1)
    kl = (q * (q.log() - p.log())).sum(-1)
    mask = (labels == -100).to(kl)
    total: Tensor = nll + 0.5 * (kl * mask).sum() / mask.sum()
    return total


def plain(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """Full logits and autograd, by the equation: loss.plain_loss."""
    inner = peft_model.base_model.model
    A, N = aligned(data), len(supervised(data)[0])
    hidden = decoder.hidden_states(inner, {"input_ids": data["input_ids"]}, A)
    with switch.switched_off(inner.lm_head):
        reference_logits = inner.lm_head(hidden)[0]
    logits = family.stock_forward(inner)(inner, data["input_ids"]).logits[0]
    weight = logits.new_full((A,), 0.5 * N / A)
    mean: Tensor = loss.plain_loss(logits, reference_logits, shifted(data["labels"])[0], weight).total / N
    return mean


def selfaug(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """The patched packages with the default settings."""
    return _loss_of(peft_model(**data))


def with_settings(**variables: str) -> Variant:
    """The patched packages with these ``SELFAUG_*`` variables, named in lower case."""

    def measured(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
        with environment(**variables):
            return selfaug(peft_model, data)

    return measured


def cached(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """SELFAUG_CACHE, from the second epoch on."""
    with environment(selfaug_cache=os.environ["BENCHMARK_CACHE"]):
        return _loss_of(peft_model(**data))


def given(peft_model: Any, data: dict[str, Tensor]) -> Tensor:
    """The same loss without a reference pass: the best that `cached` can reach. The states are those of one step."""
    inner = peft_model.base_model.model
    hidden = inner.model(data["input_ids"])[0][0]
    A, N = aligned(data), len(supervised(data)[0])
    next_labels = shifted(data["labels"])[0, :-1].to(hidden.device)
    states = inner.__dict__.setdefault("benchmark_states", hidden.detach()[:A] * 1.01)
    weight = hidden.new_full((A,), 0.5 * N / A)
    size = loss.auto_chunk_size(inner.config.vocab_size, hidden.device)
    terms = loss.chunked_loss(hidden[:-1], states, next_labels, weight, inner.lm_head, inner.lm_head, size)
    mean: Tensor = terms.total / N
    return mean


def _loss_of(outputs: Any) -> Tensor:
    loss: Tensor = outputs.loss
    return loss


SETTINGS = {
    "sample 0.25": {"selfaug_sample": "0.25"},
    "sample 0.25 by shift": {"selfaug_sample": "0.25", "selfaug_sample_by": "shift"},
    "economy": ECONOMY,  # what docs/performance.md recommends where a step's cost counts
}
VARIANTS: dict[str, Variant] = {
    "stock": stock,
    "off": off,
    "stock fused": stock_fused,
    "fused TRL": fused_trl,
    "fused Liger": fused_liger,
    "original": original,
    "plain": plain,
    "selfaug": selfaug,
    **{name: with_settings(**variables) for name, variables in SETTINGS.items()},
    "cached": cached,
    "reference given": given,
}
_FROM = {  # another library's forward: its module, what is needed of it, the requirement, whether it needs a GPU
    "fused TRL": ("trl.trainer.utils", "add_fused_lm_head", "trl>=1.16", False),
    "fused Liger": ("liger_kernel.transformers.model.qwen2", "lce_forward", "liger-kernel>=0.8", True),
}


def missing(name: str, device: torch.device) -> str:
    """What a variant needs and does not find here, with the command that installs it; empty if it can be measured."""
    if name not in _FROM:
        return ""
    module, needed, requirement, on_gpu = _FROM[name]
    package = module.partition(".")[0]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{package} is not installed (pip install '{requirement}')"
    if on_gpu and device.type == "cpu":
        return f"{package}'s kernels need a GPU"
    try:
        found = hasattr(importlib.import_module(module), needed)
    except ImportError as error:
        return f"{package} {version} cannot be imported: {error}"
    return "" if found else f"{package} {version} has no {needed} (pip install '{requirement}')"
