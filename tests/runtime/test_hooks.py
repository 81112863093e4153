"""Whatever forward is in force is wrapped once, looks as before, and is left alone where SelfAug has nothing to do."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import io
import weakref
from types import MethodType

import pytest
import torch
from tiny import base, batch, settings, taken_gradients, with_lora, worst_error
from transformers import Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from selfaug import config, family, hooks
from selfaug.trainers import metrics


def acted(model, data):
    """The KL of one step, None if SelfAug had no part in it."""
    metrics.RUNNING.clear()
    model(**data).loss.backward()
    model.zero_grad()
    return metrics.RUNNING.take().get("selfaug/kl")


def own_loss(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
    """A forward as other libraries write it: decoder, own head, own loss."""
    hidden = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
    logits = self.lm_head(hidden)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    return CausalLMOutputWithPast(loss=loss, logits=None)


@pytest.fixture
def reference():
    """(loss, gradients) of the stock forward with SelfAug."""
    model = with_lora(base())
    output = model(**batch())
    output.loss.backward()
    return output.loss.item(), taken_gradients(model)


def check_against(reference, model):
    metrics.RUNNING.clear()
    output = model(**batch())
    output.loss.backward()
    assert output.loss.item() == pytest.approx(reference[0], rel=1e-6)
    assert worst_error(taken_gradients(model), reference[1]) < 1e-4
    assert metrics.RUNNING.take()["selfaug/kl"] > 1e-4


def test_the_class_keeps_its_name_signature_and_bases():
    stock = Qwen2ForCausalLM.forward.__wrapped__
    assert Qwen2ForCausalLM.__bases__[0] is hooks.SelfAligned
    assert inspect.signature(Qwen2ForCausalLM.forward) == inspect.signature(stock)
    assert Qwen2ForCausalLM.forward.__qualname__ == "Qwen2ForCausalLM.forward"
    assert inspect.isfunction(Qwen2ForCausalLM.forward)
    assert inspect.ismethod(base().forward)


def test_a_forward_assigned_to_an_instance_gains_the_term(reference):
    model = with_lora(base())
    model.get_base_model().forward = MethodType(own_loss, model.get_base_model())
    check_against(reference, model)


def test_a_partial_assigned_to_an_instance_gains_the_term_once(reference):
    """accelerate's add_hook_to_module: a partial around the old forward, with the old one's attributes copied onto
    it.
    """
    model = with_lora(base())
    inner = model.get_base_model()
    old = inner.forward

    def new_forward(module, *args, **kwargs):
        assert module is inner
        return old(*args, **kwargs)

    inner.forward = functools.update_wrapper(functools.partial(new_forward, inner), old)
    check_against(reference, model)
    assert next(iter(inspect.signature(inner.forward).parameters)) == "input_ids"
    inner.forward = old
    check_against(reference, model)


def test_a_forward_put_on_the_class_before_a_model_is_made_gains_the_term(reference, monkeypatch):
    """Liger's and axolotl's way."""
    monkeypatch.setattr(Qwen2ForCausalLM, "forward", own_loss)
    check_against(reference, with_lora(base()))


def test_a_subclass_that_calls_the_stock_forward_gains_the_term_once(reference):
    class Wider(Qwen2ForCausalLM):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    model = base()
    model.__class__ = Wider
    check_against(reference, with_lora(model))


def test_a_subclass_with_a_loss_of_its_own_gains_the_term(reference):
    class Other(Qwen2ForCausalLM):
        forward = own_loss

    model = base()
    model.__class__ = Other
    check_against(reference, with_lora(model))


def test_a_loss_function_of_the_users_own_is_kept(reference):
    model = with_lora(base())

    def doubled(logits, labels, vocab_size, **kwargs):
        return 2 * torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())

    with settings(SELFAUG="0"):
        nll = model(**batch()).loss.item()
    model.get_base_model().loss_function = doubled
    assert model(**batch()).loss.item() == pytest.approx(reference[0] + nll, rel=1e-6)


def test_a_forward_that_raises_leaves_no_trace(reference):
    model = with_lora(base())

    def broken(self, labels=None, **kwargs):
        raise RuntimeError("broken")

    inner = model.get_base_model()
    inner.forward = MethodType(broken, inner)
    with pytest.raises(RuntimeError, match="broken"):
        model(**batch())
    assert not [name for name in vars(inner) if "selfaug" in name]
    assert not inner.model._forward_hooks
    del inner.forward
    check_against(reference, model)


def test_an_error_in_the_reference_pass_switches_lora_back_on(monkeypatch):
    model = with_lora(base())
    layer = model.get_base_model().model.layers[1]
    stock = layer.forward

    def fails_in_eval(*args, **kwargs):
        if not layer.training:
            raise RuntimeError("out of memory")
        return stock(*args, **kwargs)

    layer.forward = fails_in_eval
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**batch())
    assert all(module.training for module in model.modules())
    assert not any(getattr(module, "selfaug_reference", False) for module in model.modules())


def test_copies_and_pickles_of_a_model_act_too():
    model = with_lora(base())
    assert acted(copy.deepcopy(model), batch()) > 1e-4
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert acted(torch.load(file, weights_only=False), batch()) > 1e-4


def test_nothing_is_added_where_selfaug_has_no_part():
    data, model = batch(), with_lora(base())
    inputs = {name: value for name, value in data.items() if name != "labels"}
    stock = family.stock_forward(model.get_base_model())
    metrics.RUNNING.clear()
    assert model(**inputs).loss is None
    with settings(SELFAUG="0"):
        assert torch.equal(model(**data).loss, stock(model.get_base_model(), **data).loss)
    with settings(SELFAUG_ALPHA="0"):
        model(**data)
    with torch.no_grad():
        model(**data)
    model.eval()
    model(**data)
    with_lora(base()).disable_adapter_layers() or base().train()(**data)
    assert metrics.RUNNING.take() == {}


@pytest.mark.parametrize("how", ["frozen", "disabled", "merged"])
def test_lora_that_does_not_train_leaves_the_loss_to_stock(how):
    model = with_lora(base())
    if how == "frozen":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("embed" in name)
    elif how == "disabled":
        model.disable_adapter_layers()
        model.get_input_embeddings().requires_grad_(True)
    else:
        model.merge_adapter()
        model.get_input_embeddings().requires_grad_(True)
    metrics.RUNNING.clear()
    model(**batch()).loss.backward()
    assert metrics.RUNNING.take() == {}


def test_requires_grad_and_modes_are_untouched_by_a_step():
    model = with_lora(base(), lora_dropout=0.1)
    for name, parameter in model.named_parameters():
        if "layers.0" in name:
            parameter.requires_grad_(False)
    model.get_base_model().model.layers[1].mlp.eval()
    before = [(p.requires_grad) for p in model.parameters()], [m.training for m in model.modules()]
    acted(model, batch())
    assert before == ([(p.requires_grad) for p in model.parameters()], [m.training for m in model.modules()])


def test_a_bad_call_raises_stocks_own_error():
    model = with_lora(base())
    with pytest.raises(TypeError, match="input_ids"):
        model.get_base_model().forward(torch.ones(1, 2).long(), input_ids=torch.ones(1, 2).long(), labels=1)


def test_a_forward_that_holds_its_model_does_not_keep_it_alive():
    """accelerate's hooks put a partial of the model's own forward on the instance."""
    model = with_lora(base())
    inner = model.get_base_model()
    inner.forward = functools.partial(lambda self, *args, **kwargs: type(self).forward(self, *args, **kwargs), inner)
    assert acted(model, batch())
    gone = weakref.ref(inner)
    del model, inner
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("lora", [False, True])
def test_inference_compiles_whole(lora):
    """A call that is disabled under torch.compile would break the graph of every compiled forward."""
    model = (with_lora(base()) if lora else base()).eval()
    inner = model.get_base_model() if lora else model
    ids = batch()["input_ids"]
    with torch.no_grad():
        expected = inner(input_ids=ids, use_cache=False).logits
        compiled = torch.compile(inner, backend="eager", fullgraph=True)
        assert torch.equal(compiled(input_ids=ids, use_cache=False).logits, expected)


@pytest.mark.parametrize(("labelled", "reads"), [(True, 1), (False, 0)])
def test_a_training_step_reads_the_settings_once_and_a_forward_without_labels_never(monkeypatch, labelled, reads):
    model, data, read = with_lora(base()), batch(), []
    real = config.read
    monkeypatch.setattr(config, "read", lambda *args: read.append(args) or real(*args))
    model(**{name: value for name, value in data.items() if labelled or name != "labels"})
    assert len(read) == reads
