"""TRL on a model of a family without a patch: SFT is told, with each of its losses; DPO has no labels, and is not."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer, DiffLlamaConfig, DiffLlamaForCausalLM

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")


def llama(tokenizer):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return DiffLlamaForCausalLM(
        DiffLlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    )


@pytest.fixture
def train(tiny_model, tmp_path, said):
    """Two steps of a TRL trainer on rows; gives the warnings of SelfAug."""

    def run(trainer, settings, rows, **options):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        arguments = settings(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            bf16=False, gradient_checkpointing=False, **options,
        )  # fmt: skip
        trainer(
            llama(tokenizer), args=arguments, train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"]),
        ).train()  # fmt: skip
        return [text for text in said if "not patched" in text]

    return run


@pytest.mark.parametrize(
    "options", [{}, {"loss_type": "nll"}, {"loss_type": "dft"}, {"label_smoothing_factor": 0.1}], ids=str
)
def test_sft_is_told_once(train, options):
    rows = [{"prompt": "one two", "completion": " three"}, {"prompt": "four", "completion": " five six"}] * 4
    told = train(trl.SFTTrainer, trl.SFTConfig, rows, **options)
    assert len(told) == 1
    assert "LoRA trains DiffLlamaForCausalLM on labels, but this class is not patched" in told[0]


def test_dpo_is_not(train):
    rows = [{"prompt": "one", "chosen": " two", "rejected": " three"}] * 8
    assert train(trl.DPOTrainer, trl.DPOConfig, rows) == []
