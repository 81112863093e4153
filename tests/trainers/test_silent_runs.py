"""Runs in which SelfAug cannot act, and which ended without a word: short ones, loops in eval mode, other adapters."""

from __future__ import annotations

import peft
import pytest
import torch
from test_contracts import OwnLoss, Preferences, Unlabelled, is_documented
from test_contracts import run as run_trainer
from test_trainer import Rows
from tiny import base, batch, settings, with_lora
from transformers import Trainer, TrainingArguments

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


def test_a_loop_that_trains_in_eval_mode_is_told_once_at_its_first_backward(said):
    model = with_lora(base()).eval()
    for _ in range(2):
        model(**batch()).loss.backward()
    assert len(said) == 1
    assert is_documented(said[0])
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="computed in eval mode"):
        model(**batch(), return_dict=False)[0].backward()


def test_a_backward_in_eval_mode_without_lora_or_with_selfaug_off_or_in_evaluation_is_told_nothing(said):
    base().eval()(**batch()).loss.backward()
    model = with_lora(base()).eval()
    with settings(SELFAUG="0"):
        model(**batch()).loss.backward()
    with settings(SELFAUG_EVAL="1"):
        model(**batch()).loss.backward()  # has the term
    assert said == []


def test_an_evaluation_with_labels_compiles_whole():
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
