"""Which models and adapters can be measured, and what is said of the others."""

from __future__ import annotations

import pytest
import torch

from selfaug.retention import prompts
from selfaug.retention.bench import Bench, adapter_hash
from selfaug.self_dialogue.refusal import Refusal


@pytest.fixture
def bench(tiny_model):
    return Bench(str(tiny_model), "float32", "cpu")


def test_the_base_is_as_it_was_after_an_adapter_has_been_on_it(bench, adapters):
    ids = torch.tensor([[5, 6, 7]])
    before = bench.model(ids).logits
    with bench.adapter(adapters["far"]) as tuned:
        assert not torch.equal(tuned(ids).logits, before)
    assert torch.equal(bench.model(ids).logits, before)
    assert not [name for name, _ in bench.model.named_parameters() if "lora" in name]


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_what_an_adapter_has_trained_whole_is_gone_with_it(bench, make_adapter, settings):
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    with bench.adapter(make_adapter(0.5, **settings)):
        pass
    after = bench.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_that_is_refused_leaves_nothing_on_the_base(bench, make_adapter):
    before = bench.model(torch.tensor([[5, 6, 7]])).logits
    with pytest.raises(Refusal, match="this is not the base model"), bench.adapter(make_adapter(0.1, bias="all")):
        pass
    assert torch.equal(bench.model(torch.tensor([[5, 6, 7]])).logits, before)


@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"target_modules": ["lm_head", "v_proj"]}]
)
def test_adapters_that_can_be_switched_off_whole_can_be_measured(bench, make_adapter, settings):
    with bench.adapter(make_adapter(0.5, **settings)) as tuned, torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        on = tuned(ids).logits
        with tuned.disable_adapter():
            assert not torch.equal(on, tuned(ids).logits)


def test_an_adapter_that_changes_base_weights_is_refused(bench, make_adapter, tmp_path):
    """peft does not switch trained biases off; a tiny model with biases in its projections."""
    with pytest.raises(Refusal, match="this is not the base model"), bench.adapter(make_adapter(0.1, bias="all")):
        pass


def test_a_prompt_is_no_adapter_of_weights(bench, tmp_path, tiny_model):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="is a prompt, not weights"), bench.adapter(tmp_path):
        pass


def test_an_adapter_of_another_model_is_refused(bench, make_adapter, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="a PEFT adapter for"), bench.adapter(make_adapter(0.1, base=tmp_path)):
        pass


def test_other_weights_or_settings_are_another_adapter(adapters, make_adapter):
    assert adapter_hash(adapters["far"]) == adapter_hash(adapters["far"])
    hashes = [adapter_hash(folder) for folder in adapters.values()]
    assert len({*hashes, adapter_hash(make_adapter(1.0, lora_alpha=4))}) == 4


def test_a_folder_without_an_adapter_and_a_model_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(Refusal, match="holds no adapter"):
        adapter_hash(tmp_path)
    with pytest.raises(Refusal, match="cannot load"):
        Bench(str(tmp_path), "auto", "cpu")


def test_a_prompt_that_does_not_fit_is_refused_before_the_weights_are_loaded(bench, tmp_path):
    file = tmp_path / "general.txt"
    file.write_text("short\n" + "long " * 200, encoding="utf-8")
    bench.config.max_position_embeddings = 200
    with pytest.raises(Refusal, match=r"general.txt:2: prompt and answer do not fit"):
        bench.encode(prompts.general(file), limit=20)
    assert "model" not in vars(bench)


def test_conversations_get_the_chat_template_and_texts_stay_as_they_are(bench):
    asked, text = [{"role": "user", "content": "Hi"}], "Q: Hi\nA:"
    ids = bench.encode([prompts.Prompt(asked), prompts.Prompt(text)], limit=4)
    assert bench.tokenizer.decode(ids[0]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert bench.tokenizer.decode(ids[1]) == text
