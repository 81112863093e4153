"""Which models and adapters can be measured, and what is said of the others."""

from __future__ import annotations

import json

import pytest
import torch

from selfaug.retention import prompts
from selfaug.retention.base_model import BaseModel, tuned_hash
from selfaug.retention.whole_model import WholeModel
from selfaug.toolkit.errors import Refusal


@pytest.fixture
def base_model(tiny_model):
    return BaseModel(str(tiny_model), "float32", "cpu")


def test_the_base_is_as_it_was_after_an_adapter_has_been_on_it(base_model, adapters):
    ids = torch.tensor([[5, 6, 7]])
    before = base_model.model(ids).logits
    with base_model.tuned(adapters["far"]) as tuned:
        assert not torch.equal(tuned(ids).logits, before)
    assert torch.equal(base_model.model(ids).logits, before)
    assert not [name for name, _ in base_model.model.named_parameters() if "lora" in name]


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}])
def test_what_an_adapter_has_trained_whole_is_gone_with_it(base_model, make_adapter, settings):
    before = {name: value.clone() for name, value in base_model.model.state_dict().items()}
    with base_model.tuned(make_adapter(0.5, **settings)):
        pass
    after = base_model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_adapter_that_is_refused_leaves_nothing_on_the_base(base_model, make_adapter):
    before = base_model.model(torch.tensor([[5, 6, 7]])).logits
    with pytest.raises(Refusal, match="this is not the base model"), base_model.tuned(make_adapter(0.1, bias="all")):
        pass
    assert torch.equal(base_model.model(torch.tensor([[5, 6, 7]])).logits, before)


@pytest.mark.parametrize(
    "settings", [{"modules_to_save": ["lm_head"]}, {"use_dora": True}, {"target_modules": ["lm_head", "v_proj"]}]
)
def test_adapters_that_can_be_switched_off_whole_can_be_measured(base_model, make_adapter, settings):
    with base_model.tuned(make_adapter(0.5, **settings)) as tuned, torch.no_grad():
        ids = torch.tensor([[5, 6, 7]])
        on = tuned(ids).logits
        with tuned.disable_adapter():
            assert not torch.equal(on, tuned(ids).logits)


def test_an_adapter_that_changes_base_weights_is_refused(base_model, make_adapter, tmp_path):
    """peft does not switch trained biases off; a tiny model with biases in its projections."""
    with pytest.raises(Refusal, match="this is not the base model"), base_model.tuned(make_adapter(0.1, bias="all")):
        pass


def test_a_prompt_is_no_adapter_of_weights(base_model, tmp_path, tiny_model):
    from peft import PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="is a prompt, not weights"), base_model.tuned(tmp_path):
        pass


def test_an_adapter_of_another_model_is_refused(base_model, make_adapter, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=300, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(Refusal, match="a PEFT adapter for"), base_model.tuned(make_adapter(0.1, base=tmp_path)):
        pass


def test_other_weights_or_settings_are_another_adapter(adapters, make_adapter):
    assert tuned_hash(adapters["far"]) == tuned_hash(adapters["far"])
    hashes = [tuned_hash(folder) for folder in adapters.values()]
    assert len({*hashes, tuned_hash(make_adapter(1.0, lora_alpha=4))}) == 4


@pytest.fixture
def merged(tiny_model, adapters, tmp_path):
    """The base model with the weights of the adapter "far" merged into its own."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(adapters["far"]))
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    return tmp_path / "merged"


@torch.no_grad()
def test_a_tuned_model_of_its_own_is_switched_on_and_off_like_an_adapter(base_model, merged, adapters):
    ids = torch.tensor([[5, 6, 7]])
    before = base_model.model(ids).logits
    with base_model.tuned(adapters["far"]) as tuned:
        expected = tuned(ids).logits
    with base_model.tuned(merged) as tuned:
        torch.testing.assert_close(tuned(ids).logits, expected)
        with tuned.disable_adapter():
            assert torch.equal(tuned.get_base_model()(ids).logits, before)
        torch.testing.assert_close(tuned(ids).logits, expected)
        assert tuned.device == base_model.model.device
    assert torch.equal(base_model.model(ids).logits, before)


@torch.no_grad()
def test_the_base_has_its_weights_again_after_an_error(base_model, merged):
    ids = torch.tensor([[5, 6, 7]])
    before = base_model.model(ids).logits
    with pytest.raises(KeyboardInterrupt), base_model.tuned(merged) as tuned, tuned.disable_adapter():
        raise KeyboardInterrupt
    assert torch.equal(base_model.model(ids).logits, before)


def test_every_tensor_of_a_tied_model_changes_places_once(tiny_model, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    config.tie_word_embeddings = True
    for name in ("base", "tuned"):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    base, tuned = (AutoModelForCausalLM.from_pretrained(tmp_path / name).eval() for name in ("base", "tuned"))
    ids = torch.tensor([[5, 6, 7]])
    logits = [model(ids).logits for model in (base, tuned)]
    whole = WholeModel(base, tuned, "tuned")
    assert torch.equal(whole(ids).logits, logits[1])
    with whole.disable_adapter():
        assert torch.equal(whole(ids).logits, logits[0])
    assert torch.equal(whole.unload()(ids).logits, logits[0])


def test_a_model_that_was_not_made_from_the_base_is_refused(base_model, tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows + 8)
    model.save_pretrained(tmp_path)
    before = base_model.model(torch.tensor([[5, 6, 7]])).logits
    with pytest.raises(Refusal, match="was not made from this base model") as refused, base_model.tuned(tmp_path):
        pass
    assert f"({rows + 8}, " in str(refused.value)
    assert torch.equal(base_model.model(torch.tensor([[5, 6, 7]])).logits, before)


def test_the_hash_of_a_model_is_that_of_its_weights_and_config(merged, adapters, tiny_model):
    first = tuned_hash(merged)
    assert first == tuned_hash(merged) != tuned_hash(tiny_model)
    (merged / "config.json").write_text((merged / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert tuned_hash(merged) != first
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (merged / name).write_bytes((adapters["far"] / name).read_bytes())
    assert tuned_hash(merged) == tuned_hash(adapters["far"]), "an adapter that was saved beside a model counts"


def test_a_folder_without_an_adapter_and_a_model_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(Refusal, match="holds no adapter and no model"):
        tuned_hash(tmp_path)
    with pytest.raises(Refusal, match="cannot load"):
        BaseModel(str(tmp_path), "auto", "cpu")


def test_a_prompt_that_does_not_fit_is_refused_before_the_weights_are_loaded(base_model, tmp_path):
    file = tmp_path / "general.txt"
    file.write_text("short\n" + "long " * 200, encoding="utf-8")
    base_model.config.max_position_embeddings = 200
    with pytest.raises(Refusal, match=r"general.txt:2: prompt and answer do not fit"):
        base_model.encode(prompts.general(file), limit=20)
    assert "model" not in vars(base_model)


def test_a_row_that_the_chat_template_does_not_take_is_named_by_file_and_line(tiny_model, tmp_path):
    template = tmp_path / "t.jinja"
    no = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    model = BaseModel(str(tiny_model), "float32", "cpu")
    template.write_text(no + model.tokenizer.chat_template, encoding="utf-8")
    model = BaseModel(str(tiny_model), "float32", "cpu", str(template))
    asked = {"role": "user", "content": "Hi"}
    rows = [{"messages": [asked]}, {"messages": [{"role": "system", "content": "Be brief."}, asked]}]
    file = tmp_path / "sys.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(Refusal) as refused:
        model.encode(prompts.general(file), limit=4)
    assert f"error[bad-template]: {file}:2: the chat template fails" in str(refused.value)
    assert "System role not supported" in str(refused.value)


def test_a_template_that_is_wrong_itself_is_no_fault_of_a_row(tiny_model, tmp_path):
    (tmp_path / "t.jinja").write_text("{{ raise_exception('never') }}", encoding="utf-8")
    (tmp_path / "general.txt").write_text("Hi\n", encoding="utf-8")
    model = BaseModel(str(tiny_model), "float32", "cpu", str(tmp_path / "t.jinja"))
    with pytest.raises(Refusal, match=r"error\[bad-template\]: the chat template fails"):
        model.encode(prompts.general(tmp_path / "general.txt"), limit=4)


def test_conversations_get_the_chat_template_and_texts_stay_as_they_are(base_model):
    asked, text = [{"role": "user", "content": "Hi"}], "Q: Hi\nA:"
    ids = base_model.encode([prompts.Prompt(asked), prompts.Prompt(text)], limit=4)
    assert base_model.tokenizer.decode(ids[0]) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert base_model.tokenizer.decode(ids[1]) == text


def resized(base, tokens, folder):
    """The base with another number of tokens, as a training with added tokens makes it and saves it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(tokens)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return model


@pytest.mark.parametrize("change", [5, -2])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="peft-saves-the-embeddings"),
        pytest.param({"modules_to_save": ["embed_tokens", "lm_head"]}, id="trained-whole"),
        pytest.param({"target_modules": ["v_proj", "embed_tokens"]}, id="lora-on-the-embedding"),
        pytest.param({"target_modules": ["v_proj", "lm_head"]}, id="lora-on-the-head"),
        pytest.param({"target_modules": ["lm_head"], "use_dora": True}, id="dora-on-the-head"),
    ],
)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_an_adapter_with_another_vocabulary_is_told_by_how_much_and_what_to_do(
    base_model, tiny_model, tmp_path, settings, change, safe
):
    from peft import LoraConfig, get_peft_model

    rows = base_model.model.get_input_embeddings().weight.shape[0]
    model = get_peft_model(
        resized(tiny_model, rows + change, tmp_path / "base"), LoraConfig(**{"target_modules": ["v_proj"], **settings})
    )
    model.save_pretrained(tmp_path / "adapter", safe_serialization=safe, save_embedding_layers=True)
    with pytest.raises(Refusal) as refused, base_model.tuned(tmp_path / "adapter"):
        pass
    said = str(refused.value)
    assert refused.value.id == "other-vocabulary"
    assert f"the vocabulary was resized for this adapter, by {abs(change)} tokens" in said
    assert ("added" if change > 0 else "taken away") in said
    assert f"expected: {rows} tokens" in said
    assert f"found:    {rows + change} tokens" in said
    assert f"resize_token_embeddings({rows + change})" in said
    if change < 0:  # the tiny model's padding token is among those that are gone
        return
    with BaseModel(str(tmp_path / "base"), "float32", "cpu").tuned(
        tmp_path / "adapter"
    ) as tuned:  # what the message says
        assert tuned.get_input_embeddings().weight.shape[0] == rows + change


def test_the_base_of_an_adapter_with_added_tokens_can_be_had_from_the_adapter(base_model, tiny_model, tmp_path):
    """The second way that the message has: the embeddings that peft saved, where nobody saved the resized model."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = base_model.model.get_input_embeddings().weight.shape[0]
    torch.manual_seed(1)
    trained = resized(tiny_model, rows + 3, tmp_path / "unknown")
    get_peft_model(trained, LoraConfig(target_modules=["v_proj"])).save_pretrained(tmp_path / "adapter")
    torch.manual_seed(2)
    other = AutoModelForCausalLM.from_pretrained(tiny_model)
    other.resize_token_embeddings(rows + 3)
    PeftModel.from_pretrained(other, tmp_path / "adapter").unload().save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    with BaseModel(str(tmp_path / "base"), "float32", "cpu").tuned(tmp_path / "adapter") as tuned:
        assert torch.equal(tuned.get_input_embeddings().weight, trained.get_input_embeddings().weight)


def test_an_adapter_that_trains_a_token_that_is_not_there_is_told(base_model, make_adapter):
    import json

    folder = make_adapter(0.1)
    rows = base_model.model.get_input_embeddings().weight.shape[0]
    config = json.loads((folder / "adapter_config.json").read_text())
    config["trainable_token_indices"] = {"embed_tokens": [3, rows + 1]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(Refusal, match="by 2 tokens, added"), base_model.tuned(folder):
        pass


def test_what_does_not_fit_is_named_with_its_shapes(base_model, make_adapter):
    from safetensors.torch import load_file, save_file

    folder = make_adapter(0.1)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key: weight[:, :-1].contiguous() for key, weight in weights.items()}, folder / "adapter_model.safetensors"
    )
    with pytest.raises(Refusal, match=r"size mismatch for \S+v_proj"), base_model.tuned(folder):
        pass
