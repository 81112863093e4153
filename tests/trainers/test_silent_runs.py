"""Runs in which SelfAug cannot act, and which ended without a word: short ones, loops in eval mode, other adapters."""

from __future__ import annotations

import io

import peft
import pytest
import torch
import transformers
from test_contracts import OwnLoss, Preferences, Unlabelled, is_documented
from test_contracts import run as run_trainer
from test_trainer import Rows
from tiny import base, batch, settings, with_lora
from transformers import Trainer, TrainingArguments

from selfaug.reference import guards
from selfaug.trainers import bypass


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_one_step_past_the_model_ends_with_the_message_of_a_long_one(tmp_path, said, steps):
    run_trainer(tmp_path, OwnLoss, steps=steps)
    assert len(said) == 1
    assert "no step goes through SelfAug: OwnLoss computed its loss without it" in said[0]
    assert is_documented(said[0])


class Ignoring(Trainer):
    """A compute_loss that calls the model with its labels and makes a loss of its own from the logits."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        logits = model(**inputs).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, 1:].flatten())


@pytest.mark.parametrize("steps", [1, 3])
def test_a_short_run_whose_compute_loss_ignores_the_models_loss_is_told_at_its_end(tmp_path, said, steps):
    run_trainer(tmp_path, Ignoring, steps=steps)
    assert len(said) == 1
    assert "the losses that the model returned were never backpropagated. Passed by: Ignoring.compute_loss (" in said[0]


def test_a_short_run_past_selfaug_is_an_error_with_strict(tmp_path):
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="never backpropagated"):
        run_trainer(tmp_path, Ignoring, steps=1)


def test_a_short_run_that_selfaug_acts_in_or_has_no_part_in_is_told_nothing(tmp_path, said):
    with settings(SELFAUG_STRICT="1"):
        run_trainer(tmp_path, Trainer, steps=1)
        arguments = TrainingArguments(tmp_path, max_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
                                      use_cpu=True, remove_unused_columns=False)  # fmt: skip
        Preferences(with_lora(base()), arguments, train_dataset=Unlabelled()).train()
    with settings(SELFAUG="0"):
        run_trainer(tmp_path, Ignoring, steps=1)
    assert said == []


def train(model, steps=1):
    """Steps of a loop that does not say ``model.train()``."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad])
    for _ in range(steps):
        model(**batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_a_loop_that_trains_in_eval_mode_is_told_once_at_its_second_step(said):
    model = train(with_lora(base()).eval())
    assert said == []
    train(model, steps=2)
    assert len(said) == 1
    assert is_documented(said[0])
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="trains in eval mode"):
        model(**batch(), return_dict=False)


def test_a_loop_that_forgets_train_after_its_first_validation_is_told(said):
    model = train(with_lora(base()).train(), steps=2)
    with torch.no_grad():
        model.eval()(**batch())
    assert said == []
    train(model, steps=2)
    assert len(said) == 1


def test_training_in_eval_mode_without_lora_or_with_selfaug_off_or_with_the_term_is_told_nothing(said):
    train(base().eval(), steps=2)
    model = with_lora(base()).eval()
    with settings(SELFAUG="0"):
        train(model, steps=2)
    with settings(SELFAUG_EVAL="1"):
        train(with_lora(base()).eval(), steps=2)  # has the term
    assert said == []


def test_gradients_of_an_analysis_in_eval_mode_between_steps_of_training_are_told_nothing(said):
    model = with_lora(base())
    inputs = batch()
    for _ in range(2):
        train(model.train())
        embeddings = model.get_input_embeddings()(inputs["input_ids"]).detach().requires_grad_(True)
        for _ in range(2):
            loss = model.eval()(inputs_embeds=embeddings, labels=inputs["labels"]).loss
            torch.autograd.grad(loss, embeddings, retain_graph=True)
            loss.backward()
    assert said == []


def test_a_loss_of_an_evaluation_with_gradients_can_be_saved(recwarn):
    torch.save(with_lora(base()).eval()(**batch()).loss, io.BytesIO())
    assert [str(warning.message) for warning in recwarn if "hook" in str(warning.message)] == []


def test_an_evaluation_with_labels_compiles_whole(monkeypatch):
    monkeypatch.setenv("SELFAUG_OF_ANOTHER_TOOL", "1")
    model = with_lora(base()).eval().get_base_model()
    expected = model(**batch(), use_cache=False).loss
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(**batch(), use_cache=False).loss, expected)


def test_a_loop_that_keeps_to_its_own_loss_is_told_after_ten_steps_as_the_page_says(said):
    model = with_lora(base()).train()
    inputs = batch()
    for step in range(11):
        outputs = model(**inputs)  # that of the step before lives until this one is there, as in any loop
        logits = outputs.logits[:, :-1].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, inputs["labels"][:, 1:].flatten()).backward()
        assert len(said) == (step == 10)
    assert is_documented(said[0])


OTHERS = {
    "IA3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": lambda: peft.LoHaConfig(target_modules=["q_proj"]),
    "VeRA": lambda: peft.VeraConfig(target_modules=["q_proj"]),
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_an_adapter_that_is_no_lora_is_told_once(kind, said):
    model = peft.get_peft_model(base(), OTHERS[kind]()).train()
    with settings(SELFAUG="0"):
        model(**batch()).loss.backward()
    assert said == []
    for _ in range(2):
        model(**batch()).loss.backward()
    assert len(said) == 1
    assert "the adapter that trains is no LoRA: " in said[0]
    assert kind.lower() in said[0].lower()


class Speech(torch.nn.Module):
    """An encoder with LoRA before a frozen language model."""

    def __init__(self):
        super().__init__()
        self.language = base().requires_grad_(False)
        self.encoder = torch.nn.Sequential(torch.nn.Linear(8, self.language.config.hidden_size))

    def forward(self, sound, labels):
        return self.language(inputs_embeds=self.encoder(sound), labels=labels)


def test_a_frozen_language_model_behind_an_encoder_with_lora_is_told_nothing(said):
    model = peft.get_peft_model(Speech(), peft.LoraConfig(target_modules=["encoder.0"])).train()
    labels = batch()["labels"]
    model(torch.randn(*labels.shape, 8), labels).loss.backward()
    assert said == []


def test_llama_adapter_is_told_by_its_structure():
    config = peft.AdaptionPromptConfig(adapter_len=2, adapter_layers=1, task_type="CAUSAL_LM")
    model = peft.get_peft_model(transformers.LlamaForCausalLM(tiny_llama()), config)
    assert guards.other_adapters(model.get_base_model()) == "peft.tuners.adaption_prompt.layer.AdaptedAttention"
    assert guards.other_adapters(base()) == ""


def tiny_llama():
    return transformers.LlamaConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                    num_attention_heads=2, num_key_value_heads=2)  # fmt: skip


def test_full_fine_tuning_and_lora_that_is_switched_off_are_no_other_adapter(said):
    base().train()(**batch()).loss.backward()
    model = with_lora(base())
    model.disable_adapter_layers()
    model.get_input_embeddings().requires_grad_(True)
    model(**batch()).loss.backward()
    frozen = base().train().requires_grad_(False)
    frozen.enable_input_require_grads()
    frozen(**batch()).loss.backward()
    assert said == []


def test_a_trainer_that_runs_another_adapter_is_told_in_training_and_not_in_evaluation(tmp_path, said):
    model = peft.get_peft_model(base(), OTHERS["IA3"]())
    trainer = run_trainer(tmp_path, Trainer, steps=2, model=model)
    trainer.evaluate(Rows())
    assert len(said) == 1
    assert is_documented(said[0])
