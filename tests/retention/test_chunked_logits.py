"""One tiny random model of each family: what they put between hidden states and logits differs."""

from __future__ import annotations

import pytest
import torch
import transformers

from selfaug.retention.chunked_logits import ChunkedLogits

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2}
FAMILIES = [
    pytest.param("Llama", SMALL, "head", id="llama"),
    pytest.param("Qwen2", SMALL, "head", id="qwen2"),
    pytest.param("Qwen3", SMALL, "head", id="qwen3"),
    pytest.param("Mistral", SMALL, "head", id="mistral"),
    pytest.param("GPT2", GPT2, "head", id="gpt2"),
    pytest.param("Phi3", {**SMALL, "num_key_value_heads": 2}, "head", id="phi3"),
    pytest.param("OPT", {**SMALL, "ffn_dim": 32, "word_embed_proj_dim": 16}, "head", id="opt"),
    pytest.param("GPTNeoX", SMALL, "head", id="gpt-neox"),
    pytest.param("Bloom", {"vocab_size": 50, "hidden_size": 16, "n_layer": 2, "n_head": 2}, "head", id="bloom"),
    pytest.param(
        "Falcon",
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "head",
        id="falcon",
    ),
    pytest.param("Mamba", {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2}, "head", id="mamba"),
    pytest.param("Gemma2", {**SMALL, "final_logit_softcapping": 0.05}, "forward", id="gemma2 caps logits"),
    pytest.param("Cohere", {**SMALL, "logit_scale": 0.25}, "forward", id="cohere scales logits"),
    pytest.param("Granite", {**SMALL, "logits_scaling": 8.0}, "forward", id="granite divides logits"),
]


@pytest.fixture
def build():
    def build(name, settings):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**settings)
        return transformers.AutoModelForCausalLM.from_config(config).eval()

    return build


IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 4, 5, 0, 0]])
MASK = (IDS != 0).long()
WHERE = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 1, 0, 0]]).bool()


@pytest.mark.parametrize(("name", "settings", "kind"), FAMILIES)
def test_logits_in_parts_are_the_models_own(build, name, settings, kind):
    model = build(name, settings)
    chunked = ChunkedLogits(model)
    states = chunked.states(IDS, MASK, WHERE)
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits[WHERE]
    found = torch.cat([chunked.logits(part) for part in states.split(2)])
    torch.testing.assert_close(found, expected)
    assert chunked.kind == kind
    assert states.shape == (5, settings.get("hidden_size", 16))


def test_a_model_that_hides_its_head_keeps_its_logits_whole(build, monkeypatch):
    model = build("Llama", SMALL)
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda self: None)
    chunked = ChunkedLogits(model)
    assert chunked.kind == "whole"
    with torch.no_grad():
        expected = model(input_ids=IDS, attention_mask=MASK).logits[WHERE]
    torch.testing.assert_close(chunked.logits(chunked.states(IDS, MASK, WHERE)), expected)


def test_a_head_that_the_model_does_not_call_is_not_trusted(build):
    model = build("Llama", SMALL)
    unused = torch.nn.Linear(16, 50)
    model.get_output_embeddings = lambda: unused
    assert ChunkedLogits(model).kind == "whole"
