"""DeepSpeed ZeRO-3 on a CPU (gloo), two real processes: `python tests/distributed/deepspeed_run.py [OUT.json]`.

The HF Trainer with a ZeRO-3 config whose every parameter is partitioned, one step of SGD with learning rate 1, so that
what LoRA moved by is its gradient; compared with the HF Trainer alone in one process on all rows. Needs `deepspeed`;
no kernel of it is compiled.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import conftest  # noqa: F401  (patches transformers and peft in memory)

os.environ.update(DS_ACCELERATOR="cpu", SELFAUG_REDUCTION="sequence", SELFAUG_CHUNK_SIZE="3", OMP_NUM_THREADS="1")
import torch
from pair import launch
from tiny import ALL_LINEAR, base, batch, with_lora
from transformers import Trainer, TrainingArguments

from selfaug.trainers import metrics

ROWS = 4
ZERO3 = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0},
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "zero_allow_untested_optimizer": True,
    "gradient_clipping": "auto",  # DeepSpeed clips to 1 if nothing is said
}
CASES = {
    "ZeRO-3": {},
    "accumulation 2": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1},
    "checkpointing": {"gradient_checkpointing": True},
    "tied head": {"tied": True},
    "no aligned token on one process": {"prompts": (6, 4, 0, 0)},
    "LoRA on the head, too": {"modules": [*ALL_LINEAR, "lm_head"]},
}


def lora(model):
    """Every LoRA tensor, whole."""
    named = {name: p for name, p in model.named_parameters() if "lora_" in name}
    if not any(hasattr(p, "ds_id") for p in named.values()):
        return {name: p.detach().double().clone() for name, p in named.items()}
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(named.values())):
        return {name: p.detach().double().clone() for name, p in named.items()}


def step(processes, zero3=None, tied=False, prompts=(6, 4, 7, 2), modules=ALL_LINEAR, **arguments):
    """(what LoRA moved by, the log, how often the head was called) of one step of the HF Trainer."""
    data = batch(prompts=prompts, B=ROWS)
    rows = [{name: value[i] for name, value in data.items()} for i in range(ROWS)]
    metrics.RUNNING.clear()
    options = {"per_device_train_batch_size": ROWS // processes, **arguments}
    if zero3:
        options.update(deepspeed=zero3, accelerator_config={"use_configured_state": True})
    else:
        options.update(use_cpu=True)
    config = TrainingArguments(
        tempfile.mkdtemp(), max_steps=1, logging_steps=1, report_to=[], save_strategy="no", disable_tqdm=True,
        label_names=["labels"], optim="sgd", learning_rate=1.0, lr_scheduler_type="constant", max_grad_norm=1e9,
        bf16=False, **options,
    )  # fmt: skip
    model = with_lora(base(tie_word_embeddings=tied), target_modules=modules)
    before, calls = lora(model), []
    model.get_base_model().lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
    trainer = Trainer(model, config, train_dataset=rows)
    trainer.train()
    after = lora(model)
    return {name: before[name] - after[name] for name in before}, trainer.state.log_history[0], len(calls)


def worker(out):
    """One of two processes."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # an all-reduce for inference, which needs a compiler
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    state = PartialState(backend="gloo")
    found = {}
    for name, case in CASES.items():
        AcceleratorState._reset_state()  # a second Trainer in one process
        try:
            moved, logs, calls = step(2, ZERO3, **case)
            found[name] = {"moved": {n: t.tolist() for n, t in moved.items()}, "logs": logs, "head calls": calls}
        except Exception:
            found[name] = {"failed": traceback.format_exc(limit=-6)}
            break  # the other process may be waiting in a collective call
    if state.process_index == 0:
        Path(out).write_text(json.dumps(found))


def main():
    two = launch(__file__, Path(tempfile.mkdtemp()) / "found.json", "--worker", seconds=250)
    found = {}
    for name, case in two.items():
        if "failed" in case:
            found[name] = case
            continue
        model_and_rows = {k: v for k, v in CASES[name].items() if k in ("tied", "prompts", "modules")}
        alone, logs, _ = step(1, **model_and_rows)
        moved = {n: torch.tensor(t, dtype=torch.double) for n, t in case["moved"].items()}
        found[name] = {
            "error": max(((moved[n] - alone[n]).norm() / alone[n].norm()).item() for n in alone),
            "logs": {n: [case["logs"][n], logs[n]] for n in ("loss", "selfaug/nll", "selfaug/kl")},
            "head calls": case["head calls"],
        }
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps({"deepspeed": version("deepspeed"), "cases": found}))
    for name, case in found.items():
        print(f"deepspeed {version('deepspeed')} {name}: {case.get('failed') or case}")
    return 0 if all(case.get("error", 1) < 1e-4 for case in found.values()) and len(found) == len(CASES) else 1


if __name__ == "__main__":
    if sys.argv[2:] == ["--worker"]:
        worker(sys.argv[1])
    else:
        sys.exit(main())
