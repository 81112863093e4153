"""A model spread over two devices: wherever the head, the labels and the loss are, loss, gradients and logs are those
of the same model on one.
"""

from __future__ import annotations

import copy

import pytest
import torch
from devices import FIRST, SECOND, Devices, spread
from tiny import ALL_LINEAR, base, batch, settings, taken_gradients, with_lora, worst_error
from transformers import Trainer, TrainingArguments

from selfaug import head
from selfaug.trainers import metrics

pytestmark = pytest.mark.skipif(
    not hasattr(base().model, "rotary_emb"), reason="what is placed here is of transformers 4.45 and later"
)


def step(trainer, model, data, call, items):
    """(loss, logs, gradients)."""
    metrics.RUNNING.clear()
    if trainer is not None:
        trainer._prepare_inputs = lambda inputs: inputs
        loss = trainer.training_step(model, dict(data), items)
    else:
        loss = model(**data, **call, **({} if items is None else {"num_items_in_batch": items}))[0]
        loss.backward()
    return loss.detach().item(), metrics.RUNNING.take(), taken_gradients(model)


def trainer_of(model, folder, **options):
    arguments = TrainingArguments(folder, report_to=[], use_cpu=True, label_names=["labels"], **options)
    trainer = Trainer(model, arguments, train_dataset=[{}])
    trainer.current_gradient_accumulation_steps = 1  # train() sets this
    return trainer


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("adapters", ["none", "LoRA on the head"])
@pytest.mark.parametrize(
    "way", ["fused", "around", "label smoothing", "cached", "sharded head", "features", "features around"]
)
@pytest.mark.parametrize("counted", [False, True], ids=["", "num_items_in_batch"])
def test_two_devices_give_what_one_gives(tmp_path, monkeypatch, tied, adapters, way, counted):
    options = {"target_modules": ALL_LINEAR + ["lm_head"] * adapters.startswith("LoRA")}
    data = batch()
    call = {"return_dict": False} if way.endswith("around") else {}
    items = torch.tensor(20) if counted else None
    variables = {"selfaug_chunk_size": 4}
    if way == "cached":
        variables["selfaug_cache"] = tmp_path / "cache"
    if way.startswith("features"):
        variables["selfaug_align"] = "attention"
    one = with_lora(base(tie_word_embeddings=tied), **options)
    two = copy.deepcopy(one)
    found = []
    for model in (one, two):
        inner = model.get_base_model()
        if way == "sharded head":
            layer = getattr(inner.lm_head, "base_layer", inner.lm_head)
            monkeypatch.setattr(head, "_gathers", lambda module, layer=layer: module is layer)
        trainer = (
            trainer_of(model, str(tmp_path / "t"), label_smoothing_factor=0.1) if way.startswith("label") else None
        )
        torch.manual_seed(0)
        with settings(**variables):
            if model is one:
                found.append(step(trainer, model, data, call, items))
                continue
            with Devices() as devices:
                spread(devices, inner)
                there = {name: devices.put(tensor, FIRST) for name, tensor in data.items()}
                items = devices.put(items, FIRST) if counted else None
                found.append(step(trainer, model, there, call, items))
    (loss, logs, gradients), (loss2, logs2, gradients2) = found
    assert loss2 == pytest.approx(loss, rel=1e-5)
    assert logs2 == pytest.approx(logs, rel=1e-4)
    assert worst_error(gradients2, gradients) < (2e-3 if way == "cached" else 1e-5)


def test_the_stand_in_for_two_devices_refuses_what_two_devices_refuse():
    with Devices() as devices:
        one, other = devices.put(torch.ones(3), FIRST), devices.put(torch.ones(3), SECOND)
        for mixed in (
            lambda: one + other,
            lambda: torch.stack((one.sum(), other.sum())),
            lambda: one[other.long()] + other,
        ):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        assert (one + other.to(one.device)).device == FIRST
        assert (other * torch.tensor(2.0)).device == SECOND
        assert torch.zeros(2, device=other.device).device == SECOND
