"""Liger-Kernel's own forward and kernels, on a CPU by Triton's interpreter: `python tests/trainers/liger_stack.py`.

Put on the instance by the HF Trainer (`use_liger_kernel=True`), and on the class by `apply_liger_kernel_to_qwen2()`
before the model is made. Gradients with SelfAug against stock's (`parity.py`), the term from transformers' own modules.
And `AutoLigerKernelForCausalLM.from_pretrained`, for several families.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import tempfile
from importlib.metadata import version

os.environ["TRITON_INTERPRET"] = "1"
import parity
from liger_kernel.transformers import AutoLigerKernelForCausalLM, apply_liger_kernel_to_qwen2
from liger_kernel.transformers.model import qwen2 as liger_qwen2
from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN
from tiny import base, batch, with_lora
from transformers import Qwen2ForCausalLM, Trainer, TrainingArguments
from transformers.models.qwen2 import modeling_qwen2

from selfaug.trial import exact
from selfaug.trial import tiny as trial
from selfaug.trial.checks import gradient_error

STOCK = {name: getattr(modeling_qwen2, name) for name in ("apply_rotary_pos_emb", "Qwen2RMSNorm", "Qwen2MLP")}
STOCK_FORWARD = Qwen2ForCausalLM.forward
FUSED_LOSS = liger_qwen2.LigerForCausalLMLoss
KERNELS = {"rms_norm": False, "swiglu": False}  # they ask a number for its dtype, which the interpreter does not know
CALLS = []
# Those that have a forward of Liger's; Gemma 2's soft cap does not run in the interpreter.
AUTO = {"llama": "Llama", "qwen3": "Qwen3", "mistral": "Mistral", "phi3": "Phi3", "smollm3": "SmolLM3",
        "olmo2": "Olmo2", "glm4": "Glm4", "gemma": "Gemma"}  # fmt: skip


@functools.wraps(FUSED_LOSS)
def counted_loss(*args, **kwargs):
    CALLS.append(1)
    return FUSED_LOSS(*args, **kwargs)


liger_qwen2.LigerForCausalLMLoss = counted_loss


def plain_model():
    """Also takes Liger out of transformers again."""
    for name, value in STOCK.items():
        setattr(modeling_qwen2, name, value)
    Qwen2ForCausalLM.forward = STOCK_FORWARD
    return with_lora(base())


def trainer(level):
    if level == "class":
        apply_liger_kernel_to_qwen2(**KERNELS)
    arguments = TrainingArguments(
        tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=3, logging_steps=1, report_to=[],
        save_strategy="no", disable_tqdm=True, use_cpu=True, label_names=["labels"],
        use_liger_kernel=level == "instance", liger_kernel_config=KERNELS,
    )  # fmt: skip
    data = batch()
    rows = [{name: value[i] for name, value in data.items()} for i in range(3)]
    return Trainer(with_lora(base()), arguments, train_dataset=rows)


def measure(level):
    CALLS.clear()
    found = parity.compare(lambda: trainer(level), plain_model)
    assert len(CALLS) == 2, f"Liger's loss ran {len(CALLS)} times in two steps"
    return found


def measure_auto(family):
    """A step of a model that Liger's auto class has loaded, against its own loss and a copy without LoRA."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    cls = getattr(module, f"{AUTO[family]}ForCausalLM")
    folder = tempfile.mkdtemp()
    trial.base(cls).save_pretrained(folder)
    takes = inspect.signature(MODEL_TYPE_TO_APPLY_LIGER_FN[family]).parameters
    kernels = {name: False for name in ("rope", "rms_norm", "layer_norm", "swiglu", "geglu") if name in takes}
    model = AutoLigerKernelForCausalLM.from_pretrained(folder, **kernels).eval()
    assert inspect.unwrap(type(model).forward).__module__.startswith("liger_kernel."), "Liger's forward is not in force"
    tuned, case = trial.with_lora(model), exact.Case(family, trial.batch())
    with trial.settings(SELFAUG_ALPHA=str(exact.ALPHA)):
        found = exact._step(tuned, case.call)
    wanted = exact._wanted(model, tuned, case)
    error = gradient_error(found.gradients, wanted.gradients)
    losses = {"loss": found.loss.item(), "expected loss": wanted.loss.item()}
    return {"kl": found.kl, "expected kl": wanted.kl, "error": float(error), **losses}


if __name__ == "__main__":
    cases = {level: functools.partial(measure, level) for level in ("instance", "class")}
    cases.update({f"auto class, {family}": functools.partial(measure_auto, family) for family in AUTO})
    sys.exit(parity.report("liger-kernel", version("liger-kernel"), cases))
