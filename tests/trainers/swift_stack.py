"""ms-swift's own SFT pipeline (what `swift sft` runs): `python tests/trainers/swift_stack.py [OUT.json]`.

Gradients with SelfAug against stock's (`parity.py`), from a model directory and a JSONL file as its users have them.
`use_logits_to_keep` cuts the labels before the model sees them: by a bool mask for one row, by an int for more.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from copy import deepcopy
from pathlib import Path

import parity
from peft import get_peft_model
from tiny import base, perturb
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

os.environ.update(MODELSCOPE_OFFLINE="1", SWIFT_PATCH_HUB="0")
import swift
from swift.arguments import SftArguments
from swift.pipelines.train.sft import SwiftSft


@functools.cache
def folder():
    """A tiny Qwen2 with a byte-level tokenizer of Qwen2's kind, and rows.jsonl."""
    out = Path(tempfile.mkdtemp())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*sorted(ByteLevel.alphabet()), *special])}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=special[1:])
    tokenizer.save_pretrained(out)
    network().save_pretrained(out)
    with open(out / "rows.jsonl", "w") as file:
        for prompt, answer in parity.pairs():
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return out


def network():
    return base(attn_implementation="eager", vocab_size=264, max_position_embeddings=512)


class Started(Exception):
    """Carries the trainer that the pipeline was about to start."""


class Pipeline(SwiftSft):
    def train(self, trainer):
        raise Started(trainer)


def trainer(rows, options):
    """The trainer that the pipeline makes, its LoRA moved away from 0."""
    options = {"gradient_checkpointing": False, **options}
    arguments = SftArguments(
        model=str(folder()), model_type="qwen2", template="qwen2_5", dataset=[str(folder() / "rows.jsonl")],
        tuner_type="lora", lora_rank=4, lora_dropout=0.0, target_modules=["all-linear"], torch_dtype="float32",
        attn_impl="eager", fp16=False, bf16=False, use_cpu=True, max_steps=1, per_device_train_batch_size=rows,
        gradient_accumulation_steps=1, logging_steps=1, save_strategy="no", report_to=["none"], check_model=False,
        split_dataset_ratio=0.0, train_dataloader_shuffle=False, dataset_shuffle=False, dataloader_num_workers=0,
        output_dir=tempfile.mkdtemp(), **options,
    )  # fmt: skip
    try:
        Pipeline(arguments).run()
    except Started as started:
        found = started.args[0]
    perturb(found.model, std=0.5)
    MADE.append((deepcopy(found.model.peft_config["default"]), deepcopy(found.model.state_dict())))
    return found


MADE = []  # the LoRA config and the weights of every trainer, at its start


def plain_model():
    config, weights = MADE[-1]
    model = get_peft_model(network(), config)
    model.load_state_dict(weights)
    return model.train()


def measure(rows, **options):
    return parity.compare(lambda: trainer(rows, options), plain_model, ["token_acc"])


CASES = {
    "use_logits_to_keep, bool mask": functools.partial(measure, 1, use_logits_to_keep=True),
    "use_logits_to_keep, int suffix": functools.partial(measure, 3, use_logits_to_keep=True),
    "whole labels": functools.partial(measure, 3, use_logits_to_keep=False),
    "whole labels, one row": functools.partial(measure, 1, use_logits_to_keep=False),
    "its default": functools.partial(measure, 3),
    "gradient checkpointing": functools.partial(measure, 3, gradient_checkpointing=True),
    "label smoothing": functools.partial(measure, 3, label_smoothing_factor=0.1),
    "enable_dft_loss": functools.partial(measure, 3, enable_dft_loss=True),
}

if __name__ == "__main__":
    sys.exit(parity.report("ms-swift", swift.__version__, CASES))
