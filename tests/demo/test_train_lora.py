from __future__ import annotations

import json
import math

import pytest
import torch
import train_lora

ROWS = [
    {"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "In Kolton."}]},
    {"prompt": "Who made it? ", "completion": "Ana Brarth"},
    {"prompt": "When? ", "completion": "1935"},
]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return file


@pytest.fixture
def tokenizer(tiny_model):
    return train_lora.AutoTokenizer.from_pretrained(tiny_model)


def test_the_script_does_not_mention_selfaug():
    with open(train_lora.__file__, encoding="utf-8") as script:
        assert "selfaug" not in script.read().lower()


@pytest.mark.parametrize("extra", [[], ["--gradient-checkpointing"], ["--dtype", "bfloat16"]], ids=lambda x: x[-1:])
def test_one_epoch_on_a_tiny_model_saves_an_adapter_and_a_finite_loss(tiny_model, data, tmp_path, extra):
    output = tmp_path / "adapter"
    common = ["--model", str(tiny_model), "--data", str(data), "--output", str(output), "--epochs", "1"]
    train_lora.main([*common, "--batch-size", "2", "--lr", "1e-2", "--rank", "2", "--warmup-steps", "0", *extra])

    assert json.loads((output / "adapter_config.json").read_text())["r"] == 2
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    losses = [row["loss"] for row in history if "loss" in row]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    weights = train_lora.AutoModelForCausalLM.from_pretrained(output)  # transformers loads an adapter folder itself
    trained = [p for name, p in weights.named_parameters() if "lora_B" in name]
    assert len(trained) == 2 * 7
    assert all(p.abs().sum() > 0 for p in trained)


def test_labels_cover_the_answer_and_its_end_token_alone(data, tokenizer):
    samples = train_lora.load_samples(data, tokenizer, max_length=200)
    supervised = [[label for label in sample["labels"] if label != train_lora.IGNORE_INDEX] for sample in samples]
    assert tokenizer.batch_decode(supervised) == ["In Kolton.<|im_end|>", "Ana Brarth<|im_end|>", "1935<|im_end|>"]
    for sample, ids in zip(samples, supervised):
        assert sample["input_ids"][-len(ids) :] == ids == sample["labels"][-len(ids) :]
    assert tokenizer.decode(samples[1]["input_ids"]) == "Who made it? Ana Brarth<|im_end|>"


def test_samples_that_are_too_long_are_left_out_and_counted(data, tokenizer, capsys):
    assert len(train_lora.load_samples(data, tokenizer, max_length=12)) == 1
    assert capsys.readouterr().out == "left out 2 of 3 samples: longer than 12 tokens\n"


def test_a_template_that_rewrites_the_prompt_is_refused(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}: {{ messages[-1]['content'] }}"
    with pytest.raises(ValueError, match="use prompt/completion rows"):
        train_lora.split(ROWS[0], tokenizer)


def test_the_collator_pads_on_the_right():
    short, long = {"input_ids": [5], "labels": [5]}, {"input_ids": [6, 7, 8], "labels": [-100, 7, 8]}
    batch = train_lora.make_collator(pad_token_id=9)([short, long])
    assert batch["input_ids"].tolist() == [[5, 9, 9], [6, 7, 8]]
    assert batch["labels"].tolist() == [[5, -100, -100], [-100, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["input_ids"].dtype == torch.long
