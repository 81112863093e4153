"""A GGUF file of a tiny Qwen2, as llama.cpp would write it, becomes a folder that transformers loads."""

from __future__ import annotations

import gguf_model
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

gguf = pytest.importorskip("gguf")
LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, eos_token_id=1, pad_token_id=1, bos_token_id=1,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def write(file, model, head):
    """``head``: None, or the matrix of the head, which is written in 8 bits; the embedding is in 5."""
    writer = gguf.GGUFWriter(file, "qwen2")
    config, weights = model.config, {name: one.detach().numpy() for name, one in model.state_dict().items()}
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    tokens = ["a", "</s>", "aa", *(chr(0x100 + n) for n in range(61))]
    writer.add_token_list(tokens)
    writer.add_token_types([1, 3, *[1] * 62])
    writer.add_token_merges(["a a"])
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template(TEMPLATE)

    def quantised(name, matrix, kind):
        writer.add_tensor(name, gguf.quants.quantize(matrix, kind), raw_dtype=kind)

    quantised("token_embd.weight", weights["model.embed_tokens.weight"], gguf.GGMLQuantizationType.Q5_0)
    if head is not None:
        quantised("output.weight", head, gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for short, name in LAYER.items():
        for part in ("weight", "bias"):
            if f"model.layers.0.{name}.{part}" in weights:
                writer.add_tensor(f"blk.0.{short}.{part}", weights[f"model.layers.0.{name}.{part}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def built(tmp_path, model, head):
    write(tmp_path / "model.gguf", model, head)
    said = gguf_model.build(tmp_path / "model.gguf", tmp_path / "out")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32), said


def error(ours, theirs):
    return float((ours - theirs).detach().norm() / theirs.norm())


def test_a_matrix_that_the_file_holds_twice_is_tied_again_and_taken_from_the_finer_copy(tmp_path, model):
    original = model.get_input_embeddings().weight.detach()
    loaded, said = built(tmp_path, model, original.numpy())
    assert "tied" in said
    assert loaded.config.tie_word_embeddings
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert error(loaded.get_input_embeddings().weight, original) < 0.01, "8 bits, not 5"
    names = [name for name in dict(model.named_parameters()) if "embed_tokens" not in name]
    assert all(torch.equal(loaded.get_parameter(name), model.get_parameter(name)) for name in names)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == TEMPLATE


def test_a_head_of_its_own_stays_one(tmp_path, model):
    head = torch.randn(64, 64).numpy()
    loaded, said = built(tmp_path, model, head)
    assert "tied" not in said
    assert not loaded.config.tie_word_embeddings
    assert error(loaded.get_output_embeddings().weight, torch.tensor(head)) < 0.01


def test_a_file_with_one_matrix_is_tied_as_it_was(tmp_path, model):
    loaded, _ = built(tmp_path, model, None)
    assert loaded.config.tie_word_embeddings
    assert error(loaded.get_output_embeddings().weight, model.get_input_embeddings().weight) < 0.1
