"""LLaMA-Factory's own SFT trainer and neat_packing masks: `python tests/trainers/llamafactory_stack.py [OUT.json]`.

Gradients with SelfAug against stock's (`parity.py`). torchaudio, which only its audio inputs use, is replaced by an
empty module.
"""

from __future__ import annotations

import functools
import importlib.machinery
import os
import sys
import tempfile
import types
from importlib.metadata import version

import parity
import torch
from tiny import base, batch, with_lora

os.environ["DISABLE_VERSION_CHECK"] = "1"
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
from llamafactory.data.collator import prepare_4d_attention_mask  # noqa: E402
from llamafactory.hparams import FinetuningArguments, TrainingArguments  # noqa: E402
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer  # noqa: E402


def rows(kind):
    data = batch(padding="right" if kind == "plain" else None, prompts=(6, 4, 7))
    if kind == "plain":
        return [{name: value[i] for name, value in data.items()} for i in range(3)]
    ids, labels = data["input_ids"].reshape(-1), data["labels"].clone()
    labels[:, 0] = -100
    segments = torch.tensor([1] * 11 + [2] * 11 + [3] * 11)
    mask = prepare_4d_attention_mask(segments[None], torch.float32)[0]
    position_ids = torch.arange(11).repeat(3)
    return [{"input_ids": ids, "labels": labels.reshape(-1), "attention_mask": mask, "position_ids": position_ids}]


def model():
    return with_lora(base(attn_implementation="eager"))


def trainer(kind, options):
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=3, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, remove_unused_columns=False, bf16=False,
    )  # fmt: skip
    return CustomSeq2SeqTrainer(
        finetuning_args=FinetuningArguments(**options),
        processor=None,
        model=model(),
        args=arguments,
        tokenizer=None,
        train_dataset=rows(kind),
        data_collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
    )


def measure(kind, **options):
    return parity.compare(lambda: trainer(kind, options), model)


CASES = {
    "plain": functools.partial(measure, "plain"),
    "neat_packing": functools.partial(measure, "packed"),
    "dft": functools.partial(measure, "plain", use_dft_loss=True),
}

if __name__ == "__main__":
    sys.exit(parity.report("LLaMA-Factory", version("llamafactory"), CASES))
