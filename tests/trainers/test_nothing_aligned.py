"""A run whose data leaves nothing to align is told so, with the trainer's own switch."""

from __future__ import annotations

import sys

import pytest
import torch
from test_contracts import is_documented
from test_trainer import Rows
from tiny import base, batch, settings, with_lora
from transformers import Trainer, TrainingArguments

from selfaug.trainers import bypass


class Everything(Rows):
    """Rows that train on every token, as DataCollatorForLanguageModeling(mlm=False) makes them."""

    def __init__(self, n=8, prompts=0):
        super().__init__(n)
        self.data["labels"] = self.data["input_ids"].clone()
        self.data["labels"][n - prompts :, :5] = -100


def run(tmp_path, rows, cls=Trainer, steps=5, size=4, model=None):
    arguments = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
                                  max_steps=steps, per_device_train_batch_size=size,
                                  label_names=["labels"])  # fmt: skip
    trainer = cls(model or with_lora(base()), arguments, train_dataset=rows)
    trainer.train()
    return trainer


def named(package):
    """A Trainer whose class comes from another library."""
    return type("ItsTrainer", (Trainer,), {"__module__": f"{package}.trainer"})


@pytest.mark.parametrize(
    ("package", "switch"),
    [
        ("trl", "set assistant_only_loss=True in SFTConfig"),
        ("llamafactory", "set train_on_prompt: false"),
        ("swift", "set --loss_scale default"),
        ("axolotl", "set train_on_inputs: false"),
        ("unsloth", "call train_on_responses_only(trainer, ...)"),
        ("someones", "have the data collator put -100 into labels where the prompt is"),
    ],
)
def test_a_run_that_trains_on_every_token_is_told_once_with_the_trainers_own_switch(tmp_path, package, switch, said):
    run(tmp_path, Everything(), named(package))
    assert len(said) == 1
    assert "SelfAug is on but has nothing to align: in the first 16 rows, no token is at the input positions" in said[0]
    assert f"To train on the answer alone (ItsTrainer), {switch}" in said[0]


def test_a_run_that_ends_before_that_is_told_at_its_end(tmp_path, said):
    run(tmp_path, Everything(), steps=2)
    assert len(said) == 1
    assert "in the whole run, no token is at the input positions" in said[0]


@pytest.mark.parametrize("steps", [2, 6])
def test_with_strict_the_same_is_an_error(tmp_path, steps):
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="has nothing to align"):
        run(tmp_path, Everything(), steps=steps)


def test_a_loop_of_ones_own_is_told_too(said):
    model, data = with_lora(base()), batch(padding=None, prompts=(0, 0, 0))
    for _ in range(8):
        model(**data).loss.backward()
    assert len(said) == 1
    assert "in the first 18 rows" in said[0]
    assert "To train on the answer alone, have the data collator put -100" in said[0]


def test_padding_alone_counts_as_nothing(said):
    data = batch(prompts=(0, 0, 0))
    model = with_lora(base())
    for _ in range(8):
        model(**data).loss.backward()
    assert len(said) == 1


@pytest.mark.parametrize("positions", ["output", "all"])
def test_other_positions_are_no_false_alarm(tmp_path, positions, said):
    with settings(SELFAUG_POSITIONS=positions, SELFAUG_STRICT="1"):
        run(tmp_path, Everything())
    assert said == []


def test_a_mix_of_plain_text_and_prompts_is_no_false_alarm(tmp_path, said):
    """One row in eight has a prompt; most micro-batches of two rows have nothing to align."""
    with settings(SELFAUG_STRICT="1"):
        run(tmp_path, Everything(8, prompts=1), steps=8, size=2)
    assert said == []


def test_steps_without_a_supervised_token_are_no_sign_of_anything(said):
    model = with_lora(base())
    data = {"input_ids": torch.zeros(4, 6).long(), "attention_mask": torch.zeros(4, 6).long()}
    data["attention_mask"][:, :1] = 1
    labels = torch.full((4, 6), -100)
    for _ in range(8):
        model(**data, labels=labels)
    assert not [line for line in said if "nothing to align" in line]


def test_each_run_is_looked_at_for_itself(tmp_path, said):
    """The first run of this model had prompts."""
    model = run(tmp_path, Rows(), steps=2).model
    assert said == []
    run(tmp_path, Everything(), model=model)
    assert len(said) == 1


def test_sampled_positions_are_no_false_alarm(tmp_path, said):
    with settings(SELFAUG_SAMPLE="0.01", SELFAUG_STRICT="1"):
        run(tmp_path, Rows())
    assert said == []


def test_trls_defaults_are_told_and_its_switch_ends_it(tmp_path, said):
    """The real SFTTrainer: every token of `messages` is trained unless assistant_only_loss is set."""
    trl = pytest.importorskip("trl")
    sys.path.insert(0, str(__import__("pathlib").Path(__file__).parent))
    import parity
    import trl_stack
    from datasets import Dataset

    if trl_stack.VERSION < (0, 20):
        pytest.skip("TRL without assistant_only_loss")

    def sft(**arguments):
        config = trl.SFTConfig(
            str(tmp_path), max_steps=4, per_device_train_batch_size=4, logging_steps=1, report_to=[], bf16=False,
            save_strategy="no", disable_tqdm=True, use_cpu=True, **arguments,
        )  # fmt: skip
        words = parity.tokenizer(trl_stack.TEMPLATE)
        rows = Dataset.from_list(trl_stack.rows("chat"))
        trainer = trl.SFTTrainer(trl_stack.model(), config, train_dataset=rows, processing_class=words)
        trainer.train()
        return [log["selfaug/kl"] for log in trainer.state.log_history if "selfaug/kl" in log]

    assert sft() == [0.0] * 4
    assert len(said) == 1
    assert is_documented(said[0])
    assert all(kl > 1e-3 for kl in sft(assistant_only_loss=True))
    assert len(said) == 1
