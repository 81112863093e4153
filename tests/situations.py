"""Situations from public reports, each as an ordinary training run: what happens here, with this transformers and peft.

    python tests/situations.py                      this checkout's Code/
    python tests/situations.py --code OTHER/Code    another one's, to compare

Packages are patched in memory; nothing is installed. Each line has the number of the situation, what was measured, and
what it should be. The exit code is 1 where they differ. A situation that a release does not have is "not here".
"""

from __future__ import annotations

import argparse
import copy
import io
import logging
import os
import sys
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--code", type=Path, help="the Code folder to try; default: this checkout's")
options = parser.parse_args()
ROOT = options.code.resolve().parent if options.code else Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "runtime")]

import conftest  # noqa: E402, F401  patches transformers and peft in memory, from ROOT
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from tiny import base, batch, settings, with_lora  # noqa: E402
from transformers import Qwen2ForCausalLM, Trainer, TrainingArguments  # noqa: E402


class Rows(torch.utils.data.Dataset):
    def __init__(self, labelled=lambda row, labels: labels, n=8):
        self.data = batch(None, prompts=[5] * n, B=n)
        self.data["labels"] = torch.stack([labelled(i, row) for i, row in enumerate(self.data["labels"])])

    def __len__(self):
        return len(self.data["labels"])

    def __getitem__(self, i):
        return {name: value[i] for name, value in self.data.items()}


def train(model, rows=None, kind=Trainer, **arguments):
    """(log history, everything that was said) of an ordinary run."""
    arguments = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        **arguments,
    }
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        where = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 1}
        trainer = kind(model, TrainingArguments(folder, **where, **arguments), train_dataset=rows or Rows())
        stdout, sys.stdout = sys.stdout, io.StringIO()
        try:
            trainer.train()
        finally:
            sys.stdout = stdout
            logger.removeHandler(handler)
    text = said.getvalue() + "\n".join(str(warning.message) for warning in warned)
    return trainer.state.log_history, text


def kl_at_the_first_step(history):
    return next((log["selfaug/kl"] for log in history if "selfaug/kl" in log), None)


def mean_kl(model, untouched, data):
    """(KL in nats per token, at positions without labels) of ``model`` against a copy made before LoRA was added."""
    inputs = {"input_ids": data["input_ids"]}
    with torch.no_grad():
        q = untouched.eval()(**inputs).logits.double().log_softmax(-1)
        p = model(**inputs).logits.double().log_softmax(-1)
    return (q.exp() * (q - p)).sum(-1)[data["labels"] == -100].mean().item()


def first_batch():
    return {name: value[:8] for name, value in Rows().data.items()}


def close(value, wanted, tolerance=1e-4):
    return value is not None and abs(value - wanted) <= tolerance * max(abs(wanted), 1e-3)


def no_label_in_any_row():
    model = with_lora(base())
    train(model, Rows(lambda row, labels: torch.full_like(labels, -100)))
    finite = all(p.isfinite().all() for p in model.parameters())
    return f"weights {'finite' if finite else 'NaN'}", "weights finite", finite


def trained_tokens(tied):
    def run():
        if "trainable_token_indices" not in peft.LoraConfig.__dataclass_fields__:
            return None
        model = base(tie_word_embeddings=tied)
        untouched = copy.deepcopy(model)
        tuned = with_lora(model, trainable_token_indices=list(range(0, 61, 2)))
        wanted = mean_kl(tuned, untouched, first_batch())
        found = kl_at_the_first_step(train(tuned, per_device_train_batch_size=8, max_steps=1)[0])
        return f"KL {found}", f"KL {wanted:.7g}", close(found, wanted)

    return run


def rotary_frequencies_that_follow_the_length():
    name = next((n for n in ("rope_parameters", "rope_scaling") if hasattr(base().config, n)), None)
    if name is None:
        return None
    kind = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    model = base(max_position_embeddings=8, **{name: kind})
    for parameter in model.parameters():
        parameter.data *= 8 if parameter.dim() > 1 else 1  # attention that tells positions apart
    found = kl_at_the_first_step(train(with_lora(model, perturbed=False), per_device_train_batch_size=8)[0])
    return f"KL of a new LoRA {found}", "0", found is not None and abs(found) < 1e-6


def states_of_another_model():
    from selfaug import config, reference_cache

    with tempfile.TemporaryDirectory() as folder:
        rows = [{name: value.tolist() for name, value in Rows()[i].items()} for i in range(8)]
        other = base(seed=9)
        with settings(SELFAUG_CACHE=folder):
            reference_cache.build(other, rows, config.read())
        (built,) = [path for path in Path(folder).iterdir() if path.is_dir()]
        before = sorted(path.name for path in built.rglob("*.ref"))
        model = base()
        untouched = copy.deepcopy(model)
        tuned = with_lora(model)
        wanted = mean_kl(tuned, untouched, first_batch())
        foreign = mean_kl(tuned, other, first_batch())
        try:
            with settings(SELFAUG_CACHE=built):
                found = kl_at_the_first_step(train(tuned, per_device_train_batch_size=8, max_steps=1)[0])
        except RuntimeError as error:
            return f"refused: {str(error)[:60]}…", "its own KL, the other model's, or a refusal", True
        grew = sorted(path.name for path in built.rglob("*.ref")) != before
        right = (close(found, wanted, 1e-3) or close(found, foreign, 1e-3)) and not grew
        return f"KL {found}", f"KL {wanted:.4g} (its own) or {foreign:.4g} (the other model's, head and all)", right


def labels_that_are_shifted():
    model = with_lora(base())
    data = first_batch()
    shifted = torch.nn.functional.pad(data["labels"][:, 1:], (0, 1), value=-100)
    given = {"input_ids": data["input_ids"], "labels": shifted, "shift_labels": shifted}
    with settings(SELFAUG=0):
        try:
            stock, plain = model(**given).loss.item(), model(**data).loss.item()
        except TypeError:
            return None
    if not close(stock, plain):
        return None
    found, wanted = model(**given).loss.item(), model(**data).loss.item()
    return f"loss {found:.6f}", f"loss {wanted:.6f}, as with labels that are not shifted", close(found, wanted, 1e-6)


def nothing_aligned():
    rows = Rows(lambda row, labels: torch.arange(len(labels)) % 50)
    _, said = train(with_lora(base()), rows, max_steps=12)
    told = [line for line in said.splitlines() if "align" in line and "SelfAug" in line and "is on:" not in line]
    return f"said: {told[0][:90] if told else 'nothing'}", "said once", len(told) == 1


class OwnStep(Trainer):
    """A trainer that computes and backpropagates its loss itself."""

    def training_step(self, model, inputs, *args, **kwargs):
        model.train()
        loss = self.compute_loss(model, inputs)
        self.accelerator.backward(loss)
        return loss.detach()


def own_training_step():
    found = kl_at_the_first_step(train(with_lora(base()), kind=OwnStep)[0])
    return f"KL {found}", "a KL in the logs", bool(found)


@contextmanager
def replaced(owner, name, value):
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def step_replaced_after_attaching():
    model = with_lora(base())
    train(model, max_steps=1)  # SelfAug has attached by now
    with replaced(Trainer, "training_step", OwnStep.training_step):
        history, said = train(model, label_smoothing_factor=0.1)
    found = kl_at_the_first_step(history)
    return f"KL {found}{said_so(said)}", "a KL, or said", bool(found or said_so(said))


def class_forward_replaced_after_the_model_was_made():
    def loss_of_its_own(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        logits = self.lm_head(self.model(input_ids=input_ids, attention_mask=attention_mask)[0])
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return transformers.modeling_outputs.CausalLMOutputWithPast(loss=loss, logits=logits)

    model = with_lora(base())
    with replaced(Qwen2ForCausalLM, "forward", loss_of_its_own):
        history, said = train(model)
    found = kl_at_the_first_step(history)
    return f"KL {found}{said_so(said)}", "a KL, or said", bool(found or said_so(said))


def said_so(said):
    return ", said" if "could not act" in said or "no step goes" in said else ""


SITUATIONS = [
    ("1", "no label in any row (HF Trainer)", no_label_in_any_row),
    ("2", "trainable tokens", trained_tokens(tied=False)),
    ("2", "trainable tokens, tied head", trained_tokens(tied=True)),
    ("3", "dynamic RoPE beyond its length", rotary_frequencies_that_follow_the_length),
    ("5", "SELFAUG_CACHE names another model's folder", states_of_another_model),
    ("6", "labels that are shifted, also as shift_labels", labels_that_are_shifted),
    ("12", "every token has a label", nothing_aligned),
    ("13", "a Trainer with its own training_step", own_training_step),
    ("13", "Trainer.training_step replaced after attaching", step_replaced_after_attaching),
    ("13", "class forward replaced after the model was made", class_forward_replaced_after_the_model_was_made),
]


def main() -> int:
    print(f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
    wrong = 0
    for number, title, run in SITUATIONS:
        os.environ["TRANSFORMERS_VERBOSITY"] = "warning"
        try:
            result = run()
        except Exception as error:  # a traceback of one must not hide the others
            result = (f"{type(error).__name__}: {str(error)[:100]}", "no error", False)
        if result is None:
            print(f"{number:>3}  {title:<50} not here")
            continue
        found, wanted, right = result
        wrong += not right
        print(f"{number:>3}  {title:<50} {'right' if right else 'WRONG'}  {found}; should be: {wanted}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
