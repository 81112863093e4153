"""A step without any supervised token: the gradient is 0 or the KL's own, the loss a number, and training goes on."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from tiny import base, batch, settings, taken_gradients, with_lora
from transformers import Qwen2ForCausalLM, Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutputWithPast

from selfaug.trainers import metrics

TAKES_NO_COUNT = not hasattr(Qwen2ForCausalLM, "loss_function")  # until 4.45


def unsupervised():
    data = batch()
    return {**data, "labels": torch.full_like(data["labels"], -100)}


def mean_of_nothing(self, input_ids=None, attention_mask=None, labels=None, num_items_in_batch=None, **kwargs):
    """A forward as other libraries write it, which divides by its own count: 0 / 0."""
    logits = self.lm_head(self.model(input_ids=input_ids, attention_mask=attention_mask)[0])
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100).flatten()
    mask = (targets != -100).float()
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.clamp(min=0), reduction="none")
    return CausalLMOutputWithPast(loss=(nll * mask).sum() / mask.sum(), logits=None)


@pytest.mark.parametrize("count", [0, 0.0, torch.tensor(0), torch.tensor(0.0), torch.tensor([0])], ids=repr)
@pytest.mark.parametrize("way", ["fused", "around", "foreign"])
def test_a_count_of_zero_that_the_trainer_supplies_gives_gradient_zero(count, way):
    if way != "foreign" and TAKES_NO_COUNT:
        pytest.skip("this release takes no count")
    model = with_lora(base())
    if way == "foreign":
        model.get_base_model().forward = mean_of_nothing.__get__(model.get_base_model())
    metrics.RUNNING.clear()
    loss = model(**unsupervised(), num_items_in_batch=count, **({"logits_to_keep": 11} if way == "around" else {})).loss
    loss.sum().backward()
    gradients = taken_gradients(model)
    assert gradients
    assert all((gradient == 0).all() for gradient in gradients.values())
    assert loss.isfinite().all()
    assert all(math.isfinite(value) for value in metrics.RUNNING.take().values())


@pytest.mark.parametrize("way", ["fused", "foreign"])
def test_without_a_count_the_kl_is_a_plain_mean_and_the_foreign_nan_is_dropped(way):
    model = with_lora(base())
    wanted = None
    with settings(SELFAUG_ALPHA=0.5):
        wanted = model(**unsupervised()).loss
        wanted.backward()
        gradients = taken_gradients(model)
        if way == "foreign":
            model.get_base_model().forward = mean_of_nothing.__get__(model.get_base_model())
        loss = model(**unsupervised()).loss
    loss.backward()
    assert wanted.item() > 0
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for name, gradient in taken_gradients(model).items():
        assert torch.allclose(gradient, gradients[name], atol=1e-9)


class CutRows(torch.utils.data.Dataset):
    """Rows whose answers truncation has cut off, but for the row ``whole``."""

    def __init__(self, whole=None):
        self.data = batch(padding=None, prompts=[5] * 4, B=4)
        for row in range(4):
            if row != whole:
                self.data["labels"][row] = -100

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {name: value[i] for name, value in self.data.items()}


def train(model, rows, folder, compute_loss_func=None, **options):
    arguments = {"max_steps": 4, "per_device_train_batch_size": 1, "logging_steps": 1, **options}
    more = {} if compute_loss_func is None else {"compute_loss_func": compute_loss_func}
    where = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "seed": 1}
    trainer = Trainer(model, TrainingArguments(folder, **where, **arguments), train_dataset=rows, **more)
    trainer.train()
    return trainer


def own_loss(outputs, labels, num_items_in_batch=None):
    logits = outputs.logits[:, :-1].flatten(0, 1)
    summed = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    return summed / (num_items_in_batch if num_items_in_batch is not None else (labels[:, 1:] != -100).sum())


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"gradient_accumulation_steps": 2}, id="accumulation"),
        pytest.param({"label_smoothing_factor": 0.1}, id="label smoothing"),
        pytest.param({"compute_loss_func": own_loss}, id="compute_loss_func"),
    ],
)
@pytest.mark.parametrize("whole", [None, 2], ids=["no row whole", "one row whole"])
def test_a_trainer_whose_answers_were_cut_off_goes_on(options, whole, tmp_path):
    if "compute_loss_func" in options and "compute_loss_func" not in inspect.signature(Trainer.__init__).parameters:
        pytest.skip("this release has no compute_loss_func")
    model = with_lora(base())
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    logs = train(model, CutRows(whole), tmp_path, **options).state.log_history
    assert all(math.isfinite(value) for log in logs for value in log.values() if isinstance(value, float))
    assert any("selfaug/kl" in log for log in logs)
    after = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(p.isfinite().all() for p in after.values())
    if whole is not None:
        assert any(not torch.equal(after[name], before[name]) for name in before)
