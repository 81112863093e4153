"""TRL's SFTTrainer, whichever release is installed: `python tests/trainers/trl_stack.py [OUT.json]`.

Per setting: gradients with SelfAug against stock's (`parity.py`), and TRL's own metrics have to stay the same.
"""

from __future__ import annotations

import functools
import inspect
import sys
import tempfile

import parity
import trl
from datasets import Dataset, disable_progress_bars
from tiny import base, with_lora

disable_progress_bars()
TRL_METRICS = ("entropy", "mean_token_accuracy", "num_tokens")
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<user> {{ m['content'] }} {% else %}<bot> "
    "{% generation %}{{ m['content'] }} <eos> {% endgeneration %}{% endif %}{% endfor %}"
)
VERSION = tuple(int(part) for part in trl.__version__.split(".")[:2])


def rows(kind):
    pairs = parity.pairs()
    if kind == "chat":
        return [{"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": c}]} for p, c in pairs]
    if kind == "text":
        return [{"text": f"{p} <ans> {c}"} for p, c in pairs]
    return [{"prompt": f"{p} ", "completion": c} for p, c in pairs]


def model():
    return with_lora(base(attn_implementation="eager"))


def trainer(kind, arguments):
    """One step of four rows."""
    known = inspect.signature(trl.SFTConfig).parameters
    if "max_length" in arguments and "max_length" not in known:
        arguments = {**arguments, "max_seq_length": arguments["max_length"]}
        del arguments["max_length"]
    config = trl.SFTConfig(
        tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=4, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, learning_rate=1e-2, bf16=False, **arguments,
    )  # fmt: skip
    words, extra = parity.tokenizer(TEMPLATE), {}
    if kind == "text":
        extra["data_collator"] = trl.DataCollatorForCompletionOnlyLM(words.encode("<ans>"), tokenizer=words)
    return trl.SFTTrainer(
        model(), config, train_dataset=Dataset.from_list(rows(kind)), processing_class=words, **extra
    )  # fmt: skip


def measure(kind="prompt", **arguments):
    return parity.compare(lambda: trainer(kind, dict(arguments)), model, TRL_METRICS)


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


if __name__ == "__main__":
    runs = {name: functools.partial(measure, **case) for name, case in cases().items()}
    sys.exit(parity.report("trl", trl.__version__, runs))
