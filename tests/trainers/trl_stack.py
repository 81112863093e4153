"""TRL's SFTTrainer, whichever release is installed: `python tests/trainers/trl_stack.py [OUT.json]`.

Per setting: one step with SELFAUG_ALPHA=0 and one with 0.5 on the same rows. The difference of the LoRA gradients has
to be that of 0.5 * KL, computed from full logits by plain autograd, and TRL's own metrics have to stay the same.
"""

# ruff: noqa: E402  (the packages are patched before they are imported)
from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import conftest  # noqa: F401  (patches transformers and peft in memory)

os.environ.update(WANDB_DISABLED="true", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from tiny import base, base_logits, settings, with_lora
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfaug import metrics

disable_progress_bars()
TRL_METRICS = ("entropy", "mean_token_accuracy", "num_tokens")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} {% else %}<bot> "
    "{% generation %}{{ m['content'] }} <eos> {% endgeneration %}{% endif %}{% endfor %}"
)
VERSION = tuple(int(part) for part in trl.__version__.split(".")[:2])


def tokenizer():
    words = {f"w{i}": i for i in range(55)}
    words.update({"<ans>": 55, "<user>": 56, "<bot>": 57, "<pad>": 58, "<eos>": 59, "<unk>": 60})
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", chat_template=TEMPLATE
    )


def rows(kind):
    torch.manual_seed(0)

    def words(n):
        return " ".join(f"w{int(i)}" for i in torch.randint(0, 55, (n,)))

    pairs = [(words(6 + i % 3), words(3 + i % 2)) for i in range(8)]
    if kind == "chat":
        return [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": c}]} for p, c in pairs]
    if kind == "text":
        return [{"text": f"{p} <ans> {c}"} for p, c in pairs]
    return [{"prompt": f"{p} ", "completion": c} for p, c in pairs]


def one_step(alpha, kind, arguments):
    """(logs, gradients, the model's inputs) of one step of four rows."""
    metrics.RUNNING.clear()
    known = inspect.signature(trl.SFTConfig).parameters
    if "max_length" in arguments and "max_length" not in known:
        arguments = {**arguments, "max_seq_length": arguments["max_length"]}
        del arguments["max_length"]
    config = trl.SFTConfig(
        tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=4, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-2, bf16=False, **arguments,
    )  # fmt: skip
    words, extra = tokenizer(), {}
    if kind == "text":
        extra["data_collator"] = trl.DataCollatorForCompletionOnlyLM(words.encode("<ans>"), tokenizer=words)
    found = {}
    with settings(SELFAUG_ALPHA=str(alpha)):
        trainer = trl.SFTTrainer(
            with_lora(base(attn_implementation="eager")),
            config,
            train_dataset=Dataset.from_list(rows(kind)),
            processing_class=words,
            **extra,
        )
        step = trainer.training_step

        def noting(model, inputs, *args, **kwargs):
            found["inputs"] = {n: v.clone() for n, v in inputs.items() if isinstance(v, torch.Tensor)}
            value = step(model, inputs, *args, **kwargs)
            found["gradients"] = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
            return value

        trainer.training_step = noting
        trainer.train()
    return trainer.state.log_history[0], found["gradients"], found["inputs"]


def kl_gradients(inputs, alpha):
    """(KL, gradients of alpha * KL) from full logits."""
    model = with_lora(base(attn_implementation="eager"))
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    data = {n: v for n, v in inputs.items() if n in ("input_ids", "attention_mask", "position_ids")}
    data["use_cache"] = False  # as TRL does: with a cache, transformers does not see where documents begin
    with settings(SELFAUG="0"):
        logits, reference = model(**data).logits, base_logits(model, data)
    aligned = labels == -100
    if "attention_mask" in data:
        aligned &= data["attention_mask"] == 1
    kl = (reference.softmax(-1) * (reference.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)[aligned].mean()
    (alpha * kl).backward()
    return kl.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def measure(kind="prompt", **arguments):
    alpha = 0.5
    stock_logs, stock, _ = one_step(0, kind, arguments)
    logs, found, inputs = one_step(alpha, kind, arguments)
    kl, extra = kl_gradients(inputs, alpha)
    return {
        "kl": logs.get("selfaug/kl"),
        "expected kl": kl,
        "error": max(((found[n] - stock[n] - extra[n]).norm() / (stock[n] + extra[n]).norm()).item() for n in extra),
        "metrics": {name: logs[name] == stock_logs[name] for name in TRL_METRICS if name in stock_logs},
        "loss": logs["loss"],
        "stock loss": stock_logs["loss"],
    }


def cases():
    if VERSION < (0, 20):
        return {"completion only (collator)": {"kind": "text"}}
    return {
        "completion only": {},
        "assistant only": {"kind": "chat", "assistant_only_loss": True},
        "packing": {"packing": True, "max_length": 12},
        "padding-free": {"padding_free": True, "max_length": None},
        'loss_type="nll"': {"loss_type": "nll"},
        'loss_type="dft"': {"loss_type": "dft"},
    }


def main():
    found = {}
    for name, case in cases().items():
        try:
            found[name] = measure(**case)
        except Exception:
            found[name] = {"failed": traceback.format_exc(limit=-4)}
    answer = {"trl": trl.__version__, "transformers": transformers.__version__, "cases": found}
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(answer))
    for name, case in found.items():
        print(f"trl {trl.__version__} {name}: {case.get('failed') or case}")
    return 0 if all(case.get("error", 1) < 1e-4 and all(case["metrics"].values()) for case in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
