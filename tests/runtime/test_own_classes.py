"""Classes that are not transformers' own: of users, of other libraries' auto classes, and of code that comes with a
checkpoint. SelfAug is exact in each, or says that it does not act.
"""

from __future__ import annotations

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.llama import modeling_llama

from selfaug.trial import exact, tiny
from selfaug_patcher import families, pins

LLAMA = next(target for target in families.MODELS if target.family == "llama")
STOCK_LOSS = "The model trains on its stock loss."


def holds(base, lazy=True):
    """Loss, KL and every gradient of a step, against stock's and a copy of the model that never had LoRA."""
    check = exact._check("", "", base.eval(), exact.Case("", tiny.batch(), lazy=lazy))
    assert check.ok, check.found


def mean_nll(logits, labels):
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())


class Plain(LlamaForCausalLM):
    pass


class Caller(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class OwnLoss(LlamaForCausalLM):
    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        logits = self.lm_head(self.model(input_ids=input_ids, attention_mask=attention_mask)[0])
        return CausalLMOutputWithPast(loss=None if labels is None else mean_nll(logits, labels), logits=logits)


class Asking(LlamaForCausalLM):
    """Asks transformers' forward for logits, and makes the loss itself."""

    def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
        output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
        if labels is not None:
            output.loss = mean_nll(output.logits, labels)
        return output


@pytest.mark.parametrize(("cls", "lazy"), [(Plain, True), (Caller, True), (OwnLoss, False), (Asking, False)])
def test_a_users_subclass_has_the_loss_and_the_gradients(cls, lazy, said):
    holds(tiny.base(cls), lazy)
    assert said == []


class OwnConfig(LlamaConfig):
    model_type = "selfaug_own"


class Registered(OwnLoss):
    config_class = OwnConfig


def test_a_class_that_is_registered_with_the_auto_class_has_them(tmp_path, said):
    AutoConfig.register("selfaug_own", OwnConfig, exist_ok=True)
    AutoModelForCausalLM.register(OwnConfig, Registered, exist_ok=True)
    tiny.base(Registered).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model) is Registered
    holds(model, lazy=False)
    assert said == []


def test_an_auto_class_that_puts_a_forward_on_the_class_first_has_them(tmp_path, said, monkeypatch):
    """As Liger's AutoLigerKernelForCausalLM, which tests/trainers/liger_stack.py runs itself."""

    class AutoFused(AutoModelForCausalLM):
        @classmethod
        def from_pretrained(cls, *args, **kwargs):
            monkeypatch.setattr(modeling_llama.LlamaForCausalLM, "forward", OwnLoss.forward.__wrapped__)
            return super().from_pretrained(*args, **kwargs)

    tiny.base(LlamaForCausalLM).save_pretrained(tmp_path)
    holds(AutoFused.from_pretrained(tmp_path), lazy=False)
    assert said == []


def doubled(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
    logits = 2 * self.lm_head(self.model(input_ids=input_ids, attention_mask=attention_mask)[0])
    return CausalLMOutputWithPast(loss=mean_nll(logits, labels), logits=logits)


def doubled_in_place(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
    logits = self.lm_head(self.model(input_ids=input_ids, attention_mask=attention_mask)[0]).mul_(2)
    return CausalLMOutputWithPast(loss=mean_nll(logits, labels), logits=logits)


@pytest.mark.parametrize("forward", [doubled, doubled_in_place])
def test_a_forward_that_changes_the_logits_is_told_that_selfaug_does_not_act(forward, said):
    tuned = tiny.with_lora(tiny.base(type("Scaled", (LlamaForCausalLM,), {"forward": forward})))
    loss = tuned(**tiny.batch()).loss
    assert len(said) == 1
    assert "does something to the logits that transformers' own does not, and the KL would not see it" in said[0]
    assert f", in {forward.__name__} (" in said[0]
    assert STOCK_LOSS in said[0]
    with tiny.settings(SELFAUG="0"):
        assert torch.equal(loss, tuned(**tiny.batch()).loss)


class WithoutGenerate(PreTrainedModel):
    """A whole model of a user's own; transformers says that it cannot generate."""

    config_class = LlamaConfig

    def __init__(self, config):
        super().__init__(config)
        self.model, self.lm_head = LlamaModel(config), nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    forward = OwnLoss.forward.__wrapped__


class WithTheirBase(modeling_llama.LlamaPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.model, self.lm_head = LlamaModel(config), nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    forward = WithoutGenerate.forward


class Module(nn.Module):
    """No model of transformers' at all."""

    def __init__(self, config):
        super().__init__()
        self.model, self.lm_head = LlamaModel(config), nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    forward = WithoutGenerate.forward


class Around(nn.Module):
    """Asks a patched model for logits, and makes the loss itself."""

    def __init__(self, config):
        super().__init__()
        self.inner = LlamaForCausalLM(config)

    def forward(self, input_ids, attention_mask, labels):
        logits = self.inner(input_ids=input_ids, attention_mask=attention_mask).logits
        return CausalLMOutputWithPast(loss=mean_nll(logits, labels), logits=logits)


def step(model):
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"])).train()
    for _ in range(3):
        tuned(**tiny.batch()).loss.backward()


@pytest.mark.parametrize("cls", [WithoutGenerate, WithTheirBase, Module, Around])
def test_a_model_of_a_users_own_is_told_that_selfaug_does_not_act(cls, said):
    step(cls(tiny.config(LlamaConfig)))
    assert len(said) == 1
    assert (
        f"LoRA trains {cls.__name__} on labels, but this class is not patched: it is a model of its own, in " in said[0]
    )
    assert f"{STOCK_LOSS} Derive it from a patched class of transformers" in said[0]


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Load a checkpoint that brings this code, which `auto_map` names."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def load(code, name="LlamaForCausalLM"):
        folder = tmp_path / "checkpoint"
        base = tiny.base(LlamaForCausalLM)
        base.config.auto_map = {"AutoModelForCausalLM": f"modeling_own.{name}"}
        base.save_pretrained(folder)
        (folder / "modeling_own.py").write_text(code)
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules.")
        return model

    return load


def copied(patched=False):
    """The text of Llama's modelling file, as a checkpoint's own code."""
    with open(modeling_llama.__file__, "rb") as file:
        stock = file.read()
    text = (pins.load().patched(LLAMA, stock) if patched else stock).decode()
    for dots, package in (
        ("...", "transformers."),
        ("..", "transformers.models."),
        (".", "transformers.models.llama."),
    ):
        text = re.sub(rf"^from {re.escape(dots)}(?=\w)", f"from {package}", text, flags=re.MULTILINE)
    return text


def test_a_copy_of_a_modelling_file_in_a_checkpoint_is_told_that_selfaug_does_not_act(checkpoint, said):
    step(checkpoint(copied()))
    assert len(said) == 1
    assert "LoRA trains LlamaForCausalLM on labels, but this class is not patched: it is code that came" in said[0]
    assert f"{STOCK_LOSS} Load it without trust_remote_code=True, if transformers has a class for it" in said[0]


def test_a_copy_of_a_patched_modelling_file_has_the_loss_and_the_gradients(checkpoint, said):
    holds(checkpoint(copied(patched=True)), lazy=False)
    assert said == []


def test_a_checkpoint_whose_code_derives_from_transformers_class_has_them(checkpoint, said):
    code = "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n"
    holds(checkpoint(code, "Own"))
    assert said == []
