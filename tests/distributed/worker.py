"""One of two processes (gloo, CPU) that run every layout in turn: `python worker.py OUT [CASE ...]`, with torchrun's
variables set.

Rank 0 writes to OUT, as JSON, per case: the worst relative error of any gradient tensor against a single process that
has the whole batch, and what the logs say.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import conftest  # noqa: F401  (patches transformers and peft in memory)
import torch
import torch.distributed as dist
from tiny import ALL_LINEAR, base, batch, settings, taken_gradients, with_lora, worst_error
from torch.nn.parallel import DistributedDataParallel
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from selfaug.trainers import metrics

ROWS = 4
ROWS_OF = {
    "ragged": {"prompts": (6, 4, 7, 2), "B": ROWS, "padding": "right"},
    "alike": {"prompts": (5, 5, 5, 5), "B": ROWS, "padding": None},
    "an anchor": {"prompts": (6, 4, 11, 2), "B": ROWS, "padding": None},
    "no aligned token on rank 1": {"prompts": (6, 4, 0, 0), "B": ROWS, "padding": None},
}


def rank():
    return dist.get_rank()


def share(data):
    """This process's rows of the global batch."""
    mine = slice(rank() * ROWS // 2, (rank() + 1) * ROWS // 2)
    return {name: value[mine] for name, value in data.items()}


def supervised(data):
    return int((data["labels"][:, 1:] != -100).sum())


def lora(tied=False, on_head=False):
    return with_lora(base(tie_word_embeddings=tied), target_modules=ALL_LINEAR + ["lm_head"] * on_head)


@functools.cache
def alone(reduction, rows, tied=False, head_lora=False):
    """(gradients, logs) of one process with the whole batch."""
    data, model = batch(**ROWS_OF[rows]), lora(tied, head_lora)
    metrics.RUNNING.clear()
    with settings(SELFAUG_REDUCTION=reduction):
        model(**data, num_items_in_batch=supervised(data)).loss.backward()
    own, dist_ready = metrics.RUNNING, torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False  # this process's sums alone
    try:
        logs = own.take()
    finally:
        torch.distributed.is_initialized = dist_ready
    return taken_gradients(model), logs


def step(model, data, accumulation, reduction):
    """One optimizer step's gradients, as the HF Trainer scales them: per token of the global batch, times processes."""
    n, mine = supervised(data), share(data)
    metrics.RUNNING.clear()
    size = len(mine["labels"]) // accumulation
    with settings(SELFAUG_REDUCTION=reduction):
        for i in range(accumulation):
            rows = {name: value[i * size : (i + 1) * size] for name, value in mine.items()}
            last = i + 1 == accumulation
            with contextlib.nullcontext() if last or not hasattr(model, "no_sync") else model.no_sync():
                (model(**rows, num_items_in_batch=n).loss * dist.get_world_size()).backward()


def names(found):
    clean = ("module.", "_fsdp_wrapped_module.", "_orig_mod.")
    for prefix in clean:
        found = {name.replace(prefix, ""): grad for name, grad in found.items()}
    return found


def compared(model, reduction, rows, gradients=None, tied=False, head_lora=False):
    found = names(taken_gradients(model) if gradients is None else gradients)
    said = metrics.RUNNING.take()
    wanted, logs = alone(reduction, rows, tied, head_lora)
    return {
        "error": worst_error(found, wanted),
        "logs": max(abs(said[name] / logs[name] - 1) for name in ("selfaug/nll", "selfaug/kl")),
        "kl": said["selfaug/kl"],
    }


def ddp(accumulation=1, reduction="sequence", rows="ragged", checkpointing=None, compiled=False):
    model = with_lora(base())
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    model = DistributedDataParallel(model, find_unused_parameters=False)
    if compiled:
        model = torch.compile(model, backend="aot_eager")
    step(model, batch(**ROWS_OF[rows]), accumulation, reduction)
    return compared(model, reduction, rows)


def fsdp1(own_head=False, use_orig_params=True, accumulation=1, rows="ragged"):
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
    from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

    model = with_lora(base())

    def units(module):
        return isinstance(module, Qwen2DecoderLayer) or (own_head and module is model.get_base_model().lm_head)

    model = FSDP(
        model,
        auto_wrap_policy=functools.partial(lambda_auto_wrap_policy, lambda_fn=units),
        use_orig_params=use_orig_params,
        device_id=torch.device("cpu"),
    )
    calls = []
    head = model.get_base_model().lm_head
    head.register_forward_pre_hook(lambda *_: calls.append(1))
    step(model, batch(**ROWS_OF[rows]), accumulation, "sequence")
    with FSDP.summon_full_params(model, with_grads=True):
        # FSDP1 has gradients of frozen parameters, too, that share a flat one with LoRA; no optimizer sees them
        gradients = {name: grad for name, grad in taken_gradients(model).items() if "lora_" in name}
    return {**compared(model, "sequence", rows, gradients), "head calls": len(calls)}


def fsdp2(own_head=False, accumulation=1, tied=False, rows="ragged", head_lora=False):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = lora(tied, head_lora)
    mesh = init_device_mesh("cpu", (2,))
    inner = model.get_base_model()
    for layer in inner.model.layers:
        fully_shard(layer, mesh=mesh)
    calls = []
    if own_head:
        fully_shard(inner.lm_head, mesh=mesh)
        inner.lm_head.register_forward_pre_hook(lambda *_: calls.append(1))
    fully_shard(model, mesh=mesh)
    step(model, batch(**ROWS_OF[rows]), accumulation, "sequence")
    gradients = {name: p.grad.full_tensor().double() for name, p in model.named_parameters() if p.grad is not None}
    return {**compared(model, "sequence", rows, gradients, tied, head_lora), "head calls": len(calls)}


def trainer(tmp, rows_each=ROWS // 2, accumulation=1, rows="ragged", **variables):
    """The logs of one step of the HF Trainer, and how often anybody made logits."""
    from transformers import Trainer, TrainingArguments

    from selfaug import outputs

    made, compute = [], outputs.LazyLogits.__init__
    outputs.LazyLogits.__init__ = lambda self, function: compute(self, lambda: made.append(1) or function())
    data = batch(**ROWS_OF[rows])
    rows = [{name: value[i] for name, value in data.items()} for i in range(ROWS)]
    metrics.RUNNING.clear()
    arguments = TrainingArguments(
        tmp, per_device_train_batch_size=rows_each, gradient_accumulation_steps=accumulation, max_steps=1,
        logging_steps=1, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, label_names=["labels"], ddp_backend="gloo" if dist.is_initialized() else None,
    )  # fmt: skip
    with settings(SELFAUG_REDUCTION="sequence", **variables):
        run = Trainer(with_lora(base()), arguments, train_dataset=rows)
        run.train()
    outputs.LazyLogits.__init__ = compute
    return {**run.state.log_history[0], "logits made": len(made)}


def own_logs(tmp):
    """A Trainer whose callback logs a loss on rank 0 only, and whose rank 1 has no step that SelfAug acts on."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Logs(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if rank() == 0:
                run.log({"loss": 1.0})

    class Halved(Trainer):
        def training_step(self, model, inputs, *args, **kwargs):
            with settings(SELFAUG_ALPHA=str(0.5 * (rank() == 0))):
                return super().training_step(model, inputs, *args, **kwargs)

    data = batch(**ROWS_OF["alike"])
    rows = [{name: value[i] for name, value in data.items()} for i in range(ROWS)]
    arguments = TrainingArguments(
        tmp, per_device_train_batch_size=ROWS // 2, max_steps=2, logging_steps=1, report_to=[], save_strategy="no",
        disable_tqdm=True, use_cpu=True, label_names=["labels"], ddp_backend="gloo", learning_rate=0.0,
    )  # fmt: skip
    found = {}
    for name, cls in (("both", Trainer), ("one", Halved)):
        run = cls(with_lora(base()), arguments, train_dataset=rows, callbacks=[Logs()])
        run.train()
        found[name] = [log for log in run.state.log_history if "loss" in log]
    return found


def split_sequences(tmp):
    """Each process has half of each sequence: what a step returns with and without SelfAug, and what it says."""
    import warnings

    from selfaug.trainers import bypass

    data = batch(**{**ROWS_OF["alike"], "T": 12})
    shift = torch.cat((data["labels"][:, 1:], torch.full((ROWS, 1), -100)), 1)
    half = slice(rank() * 6, rank() * 6 + 6)
    ids, shift = data["input_ids"][:, half], shift[:, half].contiguous()
    position_ids = torch.arange(12)[None, half].expand(ROWS, -1)
    model = with_lora(base())
    with warnings.catch_warnings(record=True) as shown:
        loss = model(input_ids=ids, position_ids=position_ids, labels=shift, shift_labels=shift).loss
    with settings(SELFAUG="0"):
        stock = model(input_ids=ids, position_ids=position_ids, labels=shift, shift_labels=shift).loss
    said = [str(w.message) for w in shown if issubclass(w.category, bypass.BypassWarning)]
    everyone = [None, None]
    dist.all_gather_object(everyone, {"stock": torch.equal(loss, stock), "said": said})
    return {"ranks": everyone}


def some_turns(tmp, rows_each=1):
    """Two micro-batches, one of them with the term, and an anchor, which on two processes is alone in a micro-batch."""
    return trainer(tmp, rows_each, 2, "an anchor", SELFAUG_EVERY="2", SELFAUG_ANCHORS="1")


CASES = {
    "DDP": ddp,
    "DDP, accumulation 2": functools.partial(ddp, accumulation=2),
    "DDP, token reduction, rows alike": functools.partial(ddp, reduction="token", rows="alike"),
    "DDP, token reduction, rows alike, accumulation 2": functools.partial(ddp, 2, "token", "alike"),
    "DDP, checkpointing": functools.partial(ddp, checkpointing=False),
    "DDP, reentrant checkpointing": functools.partial(ddp, checkpointing=True),
    "DDP, compiled": functools.partial(ddp, compiled=True),
    "FSDP1, use_orig_params": fsdp1,
    "FSDP1, use_orig_params, accumulation 2": functools.partial(fsdp1, accumulation=2),
    "FSDP1, sharded head": functools.partial(fsdp1, own_head=True),
    "FSDP2": fsdp2,
    "FSDP2, accumulation 2": functools.partial(fsdp2, accumulation=2),
    "FSDP2, sharded head": functools.partial(fsdp2, own_head=True),
    "FSDP2, sharded head with LoRA": functools.partial(fsdp2, own_head=True, head_lora=True),
    "FSDP2, tied head": functools.partial(fsdp2, tied=True),
    "FSDP1, no aligned token on rank 1": functools.partial(fsdp1, rows="no aligned token on rank 1"),
    "FSDP2, no aligned token on rank 1": functools.partial(fsdp2, rows="no aligned token on rank 1"),
    "Trainer": trainer,
    "Trainer, every 2 and an anchor": some_turns,
    "own logs": own_logs,
    "split sequences": split_sequences,
}
RUNS = ("Trainer", "Trainer, every 2 and an anchor", "own logs", "split sequences")  # which need a folder


def main(out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    os.environ["SELFAUG_CHUNK_SIZE"] = "3"
    found = {}
    for name in sys.argv[2:] or CASES:
        try:
            found[name] = CASES[name](out + ".trainer") if name in RUNS else CASES[name]()
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
            break  # the other process may be waiting in a collective call
    if rank() == 0:
        Path(out).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
