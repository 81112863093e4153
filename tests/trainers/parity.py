"""What the stack scripts share: the first step of a trainer, what SelfAug has to add to its gradients, and a report.

A case passes if (gradients with SelfAug) - (gradients without it) is the gradient of ALPHA * KL, computed from full
logits by plain autograd, to a relative error of 1e-4 in every LoRA tensor.
"""

# ruff: noqa: E402  (the packages are patched before they are imported)
from __future__ import annotations

import json
import os
import sys
import traceback
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import conftest  # noqa: F401  (patches transformers and peft in memory)

os.environ.update(WANDB_DISABLED="true", HF_HUB_OFFLINE="1", TQDM_DISABLE="1")
warnings.filterwarnings("ignore")
import torch
import transformers
from tiny import base_logits, settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from selfaug.trainers import metrics

ALPHA = 0.5
BOUND = 1e-4


def tokenizer(template):
    """61 words: w0 … w54, <ans>, <user>, <bot>, <pad>, <eos>, <unk>."""
    words = {f"w{i}": i for i in range(55)}
    words.update({"<ans>": 55, "<user>": 56, "<bot>": 57, "<pad>": 58, "<eos>": 59, "<unk>": 60})
    made = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **names)


def pairs():
    """Eight ragged (prompt, answer)."""
    torch.manual_seed(0)

    def words(n):
        return " ".join(f"w{int(i)}" for i in torch.randint(0, 55, (n,)))

    return [(words(6 + i % 3), words(3 + i % 2)) for i in range(8)]


def first_step(make, alpha):
    """(logs, gradients, the model's inputs) of the first step of the trainer that ``make()`` returns."""
    metrics.RUNNING.clear()
    found = {}
    with settings(SELFAUG_ALPHA=str(alpha)):
        trainer = make()
        step = trainer.training_step

        def noting(model, inputs, *args, **kwargs):
            found["inputs"] = {n: v.clone() for n, v in inputs.items() if isinstance(v, torch.Tensor)}
            value = step(model, inputs, *args, **kwargs)
            found["gradients"] = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
            return value

        trainer.training_step = noting
        trainer.train()
    return trainer.state.log_history[0], found["gradients"], found["inputs"]


def kl_gradients(model, inputs, base=None):
    """(KL, gradients of ALPHA * KL) from full logits. ``base``: a model that never had LoRA, for the reference."""
    inputs = dict(inputs)
    labels = inputs.pop("labels")
    data = {n: v for n, v in inputs.items() if n in ("input_ids", "attention_mask", "position_ids")}
    data["use_cache"] = False  # as TRL does: with a cache, transformers does not see where documents begin
    with settings(SELFAUG="0"):
        logits = model(**data).logits
        with torch.no_grad():
            reference = base_logits(model, data) if base is None else base(**data).logits
    aligned = labels == -100
    if data.get("attention_mask") is not None and data["attention_mask"].dim() == 2:
        aligned &= data["attention_mask"] == 1
    kl = (reference.softmax(-1) * (reference.log_softmax(-1) - logits.log_softmax(-1))).sum(-1)[aligned].mean()
    (ALPHA * kl).backward()
    return kl.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def compare(make, plain_model, metric_names=(), base=None):
    """A step without SelfAug, one with it, and what has to lie between them.

    make: returns a fresh trainer, whose model has the weights of ``plain_model()``.
    metric_names: logs of the trainer's own that must be bit-identical.
    """
    stock_logs, stock, _ = first_step(make, 0)
    logs, found, inputs = first_step(make, ALPHA)
    kl, extra = kl_gradients(plain_model(), inputs, base)
    answer = {
        "kl": logs.get("selfaug/kl"),
        "expected kl": kl,
        "error": max(((found[n] - stock[n] - extra[n]).norm() / (stock[n] + extra[n]).norm()).item() for n in extra),
        "loss": logs["loss"],
        "stock loss": stock_logs["loss"],
    }
    if metric_names:
        answer["metrics"] = {name: logs[name] == stock_logs[name] for name in metric_names if name in stock_logs}
    return answer


def passes(case):
    same_kl = case.get("kl") is not None and abs(case["kl"] - case["expected kl"]) < 1e-3 * case["expected kl"]
    return case.get("error", 1) < BOUND and same_kl and all(case.get("metrics", {}).values())


def report(library, version, cases):
    """Run ``cases``, name to function, print what they found, write it to sys.argv[1] as JSON; 0 if all pass."""
    found = {}
    for name, case in cases.items():
        try:
            found[name] = case()
        except Exception:
            found[name] = {"failed": traceback.format_exc(limit=-4)}
    if len(sys.argv) > 1:
        answer = {library: version, "transformers": transformers.__version__, "cases": found}
        Path(sys.argv[1]).write_text(json.dumps(answer))
    for name, case in found.items():
        print(f"{library} {version} {name}: {case.get('failed') or case}")
    return 0 if all(passes(case) for case in found.values()) else 1
