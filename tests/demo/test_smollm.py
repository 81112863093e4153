"""The demo's model is a Llama in the form of a Qwen2: training the one gives what training the other gives."""

from __future__ import annotations

import pytest
import smollm
import torch
from tiny import batch, settings, taken_gradients, with_lora
from transformers import LlamaConfig, LlamaForCausalLM

from selfaug.trainers import metrics


@pytest.fixture
def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def step(model):
    """(loss, KL, gradients of the adapter) of one step with SelfAug, from the same adapter for every model."""
    torch.manual_seed(1)
    model = with_lora(model)
    metrics.RUNNING.clear()
    with settings(selfaug_strict=1):
        loss = model(**batch()).loss
        loss.backward()
    return loss.item(), metrics.RUNNING.take()["selfaug/kl"], taken_gradients(model)


def test_a_llama_and_its_qwen2_copy_have_the_same_loss_kl_and_gradients(llama):
    copy = smollm.as_qwen2(llama)
    loss, kl, gradients = step(llama)
    same_loss, same_kl, same_gradients = step(copy)
    assert (loss, kl) == (same_loss, same_kl)
    assert kl > 1e-3
    assert gradients.keys() == same_gradients.keys()
    assert all(torch.equal(gradients[name], same_gradients[name]) for name in gradients)


def test_a_llama_whose_projections_have_biases_is_refused_where_the_qwen2_copy_would_lose_them(llama):
    biased = LlamaForCausalLM(LlamaConfig(**{**llama.config.to_dict(), "attention_bias": True}))
    with pytest.raises(SystemExit, match=r"not a Llama that Qwen2 can hold.*o_proj\.bias"):
        smollm.as_qwen2(biased)
