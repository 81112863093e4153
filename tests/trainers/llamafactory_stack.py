"""LLaMA-Factory's own SFT trainer and neat_packing masks: `python tests/trainers/llamafactory_stack.py [OUT.json]`.

One step without SelfAug and one with it; the difference of the LoRA gradients has to be that of 0.5 * KL, computed from
full logits by plain autograd. torchaudio, which only its audio inputs use, is replaced by an empty module.
"""

# ruff: noqa: E402  (the packages are patched before they are imported)
from __future__ import annotations

import importlib.machinery
import json
import os
import sys
import tempfile
import traceback
import types
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import conftest  # noqa: F401  (patches transformers and peft in memory)

os.environ.update(DISABLE_VERSION_CHECK="1", WANDB_DISABLED="true", HF_HUB_OFFLINE="1")
sys.modules["torchaudio"] = types.ModuleType("torchaudio")
sys.modules["torchaudio"].__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
import torch
import transformers
from llamafactory.data.collator import prepare_4d_attention_mask
from llamafactory.hparams import FinetuningArguments, TrainingArguments
from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer
from tiny import base, base_logits, batch, settings, with_lora

from selfaug import metrics


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


def one_step(alpha, kind, **options):
    metrics.RUNNING.clear()
    found = {}
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=3, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, remove_unused_columns=False, bf16=False,
    )  # fmt: skip
    with settings(SELFAUG_ALPHA=str(alpha)):
        trainer = CustomSeq2SeqTrainer(
            finetuning_args=FinetuningArguments(**options),
            processor=None,
            model=with_lora(base(attn_implementation="eager")),
            args=arguments,
            tokenizer=None,
            train_dataset=rows(kind),
            data_collator=lambda rows: {name: torch.stack([row[name] for row in rows]) for name in rows[0]},
        )
        step = trainer.training_step

        def noting(model, inputs, *args, **kwargs):
            found["inputs"] = {name: value.clone() for name, value in inputs.items()}
            value = step(model, inputs, *args, **kwargs)
            found["gradients"] = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
            return value

        trainer.training_step = noting
        trainer.train()
    return trainer.state.log_history[0], found["gradients"], found["inputs"]


def kl_gradients(inputs, alpha):
    model = with_lora(base(attn_implementation="eager"))
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    with settings(SELFAUG="0"):
        logits, reference = model(**inputs).logits, base_logits(model, inputs)
    aligned = labels == -100
    if inputs["attention_mask"].dim() == 2:
        aligned &= inputs["attention_mask"] == 1
    kl = (reference.softmax(-1) * (reference.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)[aligned].mean()
    (alpha * kl).backward()
    return kl.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def measure(kind, **options):
    _, stock, _ = one_step(0, kind, **options)
    logs, found, inputs = one_step(0.5, kind, **options)
    kl, extra = kl_gradients(inputs, 0.5)
    error = max(((found[n] - stock[n] - extra[n]).norm() / (stock[n] + extra[n]).norm()).item() for n in extra)
    return {"kl": logs.get("selfaug/kl"), "expected kl": kl, "error": error, "loss": logs["loss"]}


CASES = {"plain": ("plain", {}), "neat_packing": ("packed", {}), "dft": ("plain", {"use_dft_loss": True})}


def main():
    found = {}
    for name, (kind, options) in CASES.items():
        try:
            found[name] = measure(kind, **options)
        except Exception:
            found[name] = {"failed": traceback.format_exc(limit=-4)}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"transformers": transformers.__version__, "cases": found}))
    for name, case in found.items():
        print(f"LLaMA-Factory {name}: {case.get('failed') or case}")
    return 0 if all(case.get("error", 1) < 1e-4 for case in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
