"""A reference that is not the model that training started from is never used without a word."""

from __future__ import annotations

import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import ALL_LINEAR, base, base_logits, batch, expected, settings, taken_gradients, with_lora, worst_error

from selfaug.reference import guards
from selfaug.trainers import metrics


def refusal(model):
    with pytest.raises(guards.ReferenceModelError) as caught:
        model.train()(**batch())
    return str(caught.value)


def made(**options):
    """LoRA with these options, or a skip where this peft does not know them yet."""
    try:
        return with_lora(base(), **options)
    except (TypeError, ValueError) as unknown:
        pytest.skip(str(unknown)[:80])


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_2", "olora"])
def test_an_initialisation_that_changes_the_base_weights_is_refused(init):
    text = refusal(made(perturbed=False, init_lora_weights=init))
    assert text.startswith("SelfAug cannot take the model with LoRA off as its reference.\n  found: adapter 'default'")
    assert f"init_lora_weights='{init}'" in text
    assert "SELFAUG=0" in text


@pytest.mark.parametrize("init", ["corda", "loftq", "lora_ga"])
def test_initialisations_that_need_data_are_known_by_name(init):
    """They cannot be made here within a test: what is tested is that peft's name is the one that is refused."""
    model = with_lora(base())
    model.peft_config["default"].init_lora_weights = init
    assert f"init_lora_weights='{init}'" in refusal(model)


def test_kasa_is_refused():
    lora = pytest.importorskip("peft.tuners.lora.config")
    if not hasattr(lora, "KasaConfig"):
        pytest.skip("peft without KaSA")
    assert "kasa_config is set" in refusal(with_lora(base(), perturbed=False, kasa_config=lora.KasaConfig()))


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva", "mica"])
def test_an_initialisation_that_leaves_the_base_alone_has_the_base_as_its_reference(init):
    stock, data = base(), batch()
    with torch.no_grad():
        wanted = stock.eval()(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    model = made(init_lora_weights=init, r=2)
    assert torch.allclose(base_logits(model, data), wanted, atol=1e-5)
    answer, gradients = expected(model, data, reference=wanted)
    output = model(**data)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(answer.loss, rel=1e-5)
    assert worst_error(taken_gradients(model), gradients) < 3e-4


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_refused(bias):
    text = refusal(with_lora(base(), bias=bias))
    assert f"LoraConfig(bias='{bias}'): model.layers.0.self_attn.q_proj.base_layer.bias" in text
    assert "set bias='none'" in text


def test_base_weights_that_train_beside_lora_are_refused():
    model = with_lora(base())
    model.get_base_model().model.norm.weight.requires_grad_(True)
    assert "requires_grad=True on weights of the base model: model.norm.weight train" in refusal(model)


def test_biases_and_weights_of_adapters_are_none_of_the_base_models():
    model = made(modules_to_save=["lm_head"], lora_bias=True)
    assert model(**batch()).loss.requires_grad


def test_trainable_tokens_are_none_of_the_base_models():
    model = made(trainable_token_indices=[3, 5])
    metrics.RUNNING.clear()
    model(**batch())
    assert metrics.RUNNING.take()["selfaug/kl"] > 1e-4


def test_an_adapter_merged_in_some_layers_is_refused():
    model = with_lora(base())
    model.get_base_model().model.layers[0].self_attn.q_proj.merge()
    assert "adapter 'default' is merged into base weights" in refusal(model)


def test_a_model_that_an_adapter_was_merged_into_for_good_is_a_base_of_its_own():
    merged = with_lora(base()).merge_and_unload()
    with torch.no_grad():
        wanted = merged.eval()(**{name: value for name, value in batch().items() if name != "labels"}).logits
    model = with_lora(merged)
    answer, _ = expected(model, batch(), reference=wanted)
    assert model(**batch()).loss.item() == pytest.approx(answer.loss, rel=1e-5)


@pytest.fixture
def two_adapters():
    """A frozen adapter under the one that trains; the frozen one sits in places of its own, too."""
    model = with_lora(base(), target_modules=["q_proj", "up_proj"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name and "second" in name)
        if "lora_B.second" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_a_frozen_adapter_beside_the_training_one_has_to_be_decided_about(two_adapters):
    text = refusal(two_adapters)
    assert "adapter 'default' is active and frozen beside 'second', which trains" in text
    assert "SELFAUG_REFERENCE=base" in text
    assert "SELFAUG_REFERENCE=frozen-adapters" in text


@pytest.mark.parametrize("chosen", ["base", "frozen-adapters"])
def test_the_reference_is_what_the_user_chose(two_adapters, chosen):
    data = batch()
    alone = base() if chosen == "base" else with_lora(base(), target_modules=["q_proj", "up_proj"])
    with torch.no_grad():
        wanted = alone.eval()(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    answer, gradients = expected(two_adapters, data, reference=wanted)
    active = [layer._active_adapter for layer in two_adapters.modules() if hasattr(layer, "lora_A")]
    with settings(SELFAUG_REFERENCE=chosen):
        output = two_adapters(**data)
    output.loss.backward()
    assert answer.kl > 1e-4
    assert output.loss.item() == pytest.approx(answer.loss, rel=1e-5)
    assert worst_error(taken_gradients(two_adapters), gradients) < 3e-4
    assert [layer._active_adapter for layer in two_adapters.modules() if hasattr(layer, "lora_A")] == active


def test_parts_of_one_adapter_may_be_frozen():
    model = with_lora(base(), target_modules=ALL_LINEAR)
    for name, parameter in model.named_parameters():
        if "layers.0" in name or "lora_A" in name:
            parameter.requires_grad_(False)
    assert model(**batch()).loss.requires_grad


def test_the_model_is_examined_once_and_again_when_another_adapter_is_active(monkeypatch):
    examined = []
    examine = guards._examine
    monkeypatch.setattr(guards, "_examine", lambda *a: examined.append(1) or examine(*a))
    model = with_lora(base())
    for _ in range(3):
        model(**batch())
    assert len(examined) == 1
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"]))
    model.peft_config["second"].init_lora_weights = "pissa"
    model.set_adapter("second")
    assert "adapter 'second'" in refusal(model)


def test_a_peft_without_the_switch_is_told(monkeypatch, said):
    """peft was upgraded after the installation; transformers was not."""
    from peft.tuners.lora.layer import LoraLayer

    model = with_lora(base())
    switch = next(cls for cls in LoraLayer.__mro__ if "selfaug_reference" in vars(cls))
    monkeypatch.delattr(switch, "selfaug_reference")
    monkeypatch.delattr(switch, "disable_adapters")
    model(**batch())
    model(**batch())
    assert len(said) == 1
    assert "peft's LoRA layers are not patched: SelfAug was never installed for peft " in said[0]
    assert f"selfaug_patcher install --python {sys.executable}`, or set SELFAUG=0 to train without" in said[0]


def test_a_plain_model_is_not_told_anything():
    assert not guards.unpatched_peft(base())
    assert not guards.unpatched_peft(get_peft_model(base(), LoraConfig(target_modules=["q_proj"])))


@pytest.mark.parametrize("how", ["unload", "merge_and_unload"])
def test_lora_that_replaces_other_lora_is_examined_though_the_model_is_the_same_object(how):
    model = with_lora(base())
    model(**batch())
    inner = getattr(model, how)()
    again = get_peft_model(inner, LoraConfig(target_modules=["q_proj"], bias="all")).train()
    assert again.get_base_model() is inner is model.get_base_model()
    assert "bias='all'" in refusal(again)


def test_views_that_fsdp1_shows_for_frozen_weights_are_not_taken_for_training_ones():
    """In a unit with anything that trains, FSDP1 with use_orig_params shows views of the flat parameter."""
    model = with_lora(base())
    norm = model.get_base_model().model.norm
    frozen = norm._parameters["weight"]
    norm._parameters["weight"] = frozen.detach().clone().requires_grad_() * 1  # no nn.Parameter
    assert model(**batch()).loss.requires_grad
