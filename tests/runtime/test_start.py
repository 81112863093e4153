"""Adapters that had weights before training: said at the first step, and SELFAUG_REFERENCE=start holds on to them."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from tiny import base, batch, expected, perturb, settings, taken_gradients, with_lora, worst_error

from selfaug.reference.guards import ReferenceModelError
from selfaug.trainers import announce, metrics


@pytest.fixture
def said(monkeypatch):
    """What SelfAug warned of."""
    messages = []
    monkeypatch.setattr(announce.logger, "warning", messages.append)
    return messages


def logits(model, data):
    with torch.no_grad():
        return model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits


def agree(model, start, data, **options):
    """The step holds on to ``start``, a copy of the whole model, adapter and all, made before the first step."""
    answer, wanted = expected(model, data, reference=logits(start.eval(), data), **options)
    metrics.RUNNING.clear()
    loss = model(**data).loss
    loss.backward()
    gradients = taken_gradients(model)
    assert metrics.RUNNING.take()["selfaug/kl"] == pytest.approx(answer.kl, rel=1e-4, abs=1e-7)
    assert loss.item() == pytest.approx(answer.loss, rel=1e-5)
    assert worst_error(gradients, wanted) < 3e-4
    return answer


def moved(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.2


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="LoRA"),
        pytest.param({"use_dora": True}, id="DoRA"),
        pytest.param({"modules_to_save": ["lm_head"]}, id="a head saved"),
        pytest.param({"target_modules": ["q_proj", "lm_head", "embed_tokens"]}, id="LoRA on head and embeddings"),
        pytest.param({"init_lora_weights": "olora"}, id="an initialisation that changes the base"),
        pytest.param({"bias": "all"}, id="trained biases"),
    ],
)
def test_start_holds_on_to_the_model_as_it_was_at_the_first_step(options):
    model = with_lora(base(), **options)
    start, data = copy.deepcopy(model), batch()
    with settings(SELFAUG_REFERENCE="start"):
        metrics.RUNNING.clear()
        model(**data).loss.backward()
        assert abs(metrics.RUNNING.take()["selfaug/kl"]) < 1e-6
        model.zero_grad(set_to_none=True)
        for seed in (1, 2):
            moved(model, seed)
            assert agree(model, start, data).kl > 1e-3


def test_start_holds_on_to_the_start_under_autocast_too():
    """Autocast keeps what it made of a weight for as long as it is on: of the start, too, if nobody clears that."""
    model = with_lora(base())
    start, data = copy.deepcopy(model), batch()

    def half():
        return torch.autocast("cpu", dtype=torch.bfloat16)

    with settings(SELFAUG_REFERENCE="start"):
        with half():
            model(**data).loss.backward()
        model.zero_grad(set_to_none=True)
        moved(model, 1)
        with half():
            reference = logits(start.eval(), data).float()
        with half():
            answer, wanted = expected(model, data, reference=reference)
        with half():
            loss = model(**data).loss
            loss.backward()
    assert loss.item() == pytest.approx(answer.loss, rel=2e-2)
    assert worst_error(taken_gradients(model), wanted) < 0.1


def test_a_second_frozen_adapter_is_part_of_the_start():
    from peft import LoraConfig

    model = with_lora(base(), target_modules=["q_proj"])
    model.add_adapter("first", LoraConfig(r=4, target_modules=["down_proj"]))
    model.base_model.set_adapter(["default", "first"])
    perturb(model)
    for name, parameter in model.named_parameters():
        if ".first." in name:
            parameter.requires_grad_(False)
    start, data = copy.deepcopy(model), batch()
    with settings(SELFAUG_REFERENCE="start"):
        model(**data).loss.backward()
        model.zero_grad(set_to_none=True)
        moved(model, 1)
        agree(model, start, data)


def test_an_adapter_that_was_loaded_is_told_at_the_first_step_with_what_to_do(said):
    model = with_lora(base())
    model(**batch())
    model(**batch())
    (message,) = [message for message in said if "had weights before" in message]
    assert "adapter default had weights before the first step" in message
    assert "SELFAUG_REFERENCE=start" in message


@pytest.mark.parametrize("reference", ["base", "start"])
def test_who_says_what_is_meant_is_told_nothing(said, reference):
    with settings(SELFAUG_REFERENCE=reference):
        with_lora(base())(**batch())
    assert not [message for message in said if "had weights before" in message]


def test_a_new_adapter_is_told_nothing(said):
    with_lora(base(), perturbed=False, target_modules=["q_proj", "embed_tokens"])(**batch())
    assert not [message for message in said if "had weights before" in message]


@pytest.mark.parametrize("kind", ["orthogonal", "AdaLoRA"])
def test_weights_that_change_nothing_are_told_nothing(said, kind):
    from peft import AdaLoraConfig, get_peft_model

    if kind == "AdaLoRA":
        model = get_peft_model(base(), AdaLoraConfig(r=4, init_r=4, total_step=10, target_modules=["q_proj"])).train()
    else:
        try:
            model = with_lora(base(), perturbed=False, init_lora_weights=kind)
        except (ValueError, NotImplementedError):
            pytest.skip("this peft has no such initialisation")
    model(**batch())
    assert not [message for message in said if "had weights before" in message]


def test_the_start_is_the_adapter_that_was_active_then_whatever_is_active_later():
    from peft import LoraConfig

    model = with_lora(base())
    start, data = copy.deepcopy(model), batch()
    with settings(SELFAUG_REFERENCE="start"):
        model(**data)
        model.add_adapter("second", LoraConfig(r=4, target_modules=["down_proj"]))
        model.set_adapter("second")
        perturb(model)
        agree(model.train(), start, data)


def test_weights_that_replace_those_of_the_start_are_refused():
    model, data = with_lora(base()), batch()
    with settings(SELFAUG_REFERENCE="start"):
        model(**data)
        model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        with pytest.raises(ReferenceModelError, match="is no longer the parameter that it was at the first step"):
            model(**data)


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_trains_goes_back_to_its_start(tied):
    model = base(tie_word_embeddings=tied)
    tuned = with_lora(model)
    model.lm_head.weight.requires_grad_(True)
    start, data = copy.deepcopy(tuned), batch()
    with settings(SELFAUG_REFERENCE="start"):
        tuned(**data)
        moved(tuned, 1)
        agree(tuned, start, data)


def test_a_cache_that_cannot_hold_the_reference_is_said_not_to_be_used(said, tmp_path):
    with settings(SELFAUG_REFERENCE="start", SELFAUG_CACHE=tmp_path):
        with_lora(base())(**batch())
    assert "SELFAUG_CACHE is not used: the reference is more than the base weights" in said[0]
    assert not list(tmp_path.iterdir())


def test_a_start_does_not_keep_its_model_alive():
    model = base()
    tuned = with_lora(model)
    alive = weakref.ref(model)
    with settings(SELFAUG_REFERENCE="start"):
        tuned(**batch()).loss.backward()
    del model, tuned
    gc.collect()
    assert alive() is None


def test_a_run_that_is_resumed_has_no_start(tmp_path):
    from transformers import Trainer, TrainingArguments

    rows = [{name: value[i] for name, value in batch().items()} for i in range(3)]
    where = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 3}

    def trainer(steps):
        arguments = TrainingArguments(tmp_path, max_steps=steps, save_steps=1, **where)
        return Trainer(with_lora(base()), arguments, train_dataset=rows)

    trainer(1).train()
    with settings(SELFAUG_REFERENCE="start"), pytest.raises(ReferenceModelError, match="resumed at optimizer step 1"):
        trainer(2).train(resume_from_checkpoint=True)
