"""Whoever owns `training_step`, `compute_loss`, `log` or the model's forward, and whenever it was put there: the term
is in the gradient, or the run is told. What is said reaches a user whose loggers and warnings are silenced.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import MethodType

import pytest
import torch
import transformers
from test_contracts import OwnLoss, is_documented, no_loss
from test_hooks import own_loss
from test_trainer import Rows
from tiny import base, batch, settings, taken_gradients, with_lora, worst_error
from transformers import Qwen2ForCausalLM, Trainer, TrainingArguments

from selfaug import hooks
from selfaug.trainers import attach, bypass, metrics


def run(tmp_path, cls=Trainer, steps=1, prepare=None, **arguments):
    """(trainer, gradients of the last step) of a Trainer that ``prepare`` may change before it trains."""
    options = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
                                max_steps=steps, logging_steps=1, per_device_train_batch_size=4, learning_rate=0.0,
                                label_names=["labels"], **arguments)  # fmt: skip
    trainer = cls(with_lora(base()), options, train_dataset=Rows(4))
    if prepare:
        prepare(trainer)
    clip = trainer.accelerator.clip_grad_norm_
    found = {}

    def noting(parameters, *args, **kwargs):
        found.update({n: p.grad.double().clone() for n, p in trainer.model.named_parameters() if p.grad is not None})
        return clip(parameters, *args, **kwargs)

    trainer.accelerator.clip_grad_norm_ = noting
    trainer.train()
    return trainer, found


def own_step(self, model, inputs, num_items_in_batch=None):
    """A training_step that asks compute_loss and does the rest itself."""
    model.train()
    inputs = self._prepare_inputs(inputs)
    counted = () if num_items_in_batch is None else (num_items_in_batch,)  # transformers from 4.46 on
    loss = self.compute_loss(model, inputs, False, *counted)
    self.accelerator.backward(loss)
    return loss.detach()


def direct_step(self, model, inputs, num_items_in_batch=None):
    """A training_step that calls the model itself."""
    loss = model(**self._prepare_inputs(inputs)).loss
    self.accelerator.backward(loss)
    return loss.detach()


def past_step(self, model, inputs, num_items_in_batch=None):
    """A training_step that makes its loss from the decoder."""
    loss = OwnLoss.compute_loss(self, model, self._prepare_inputs(inputs))
    self.accelerator.backward(loss)
    return loss.detach()


WAYS = {
    "subclass": lambda step, patch: {"cls": type("Own", (Trainer,), {"training_step": step})},
    "on the class, later": lambda step, patch: patch.setattr(Trainer, "training_step", step) or {},
    "on the instance": lambda step, patch: {
        "prepare": lambda trainer: setattr(trainer, "training_step", MethodType(step, trainer))
    },
    "on the instance, a partial": lambda step, patch: {
        "prepare": lambda trainer: setattr(trainer, "training_step", functools.partial(step, trainer))
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [own_step, direct_step])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_training_step_of_ones_own_has_the_term(tmp_path, monkeypatch, way, step, smoothing, said):
    """With label smoothing, compute_loss keeps the labels from the model, so the term has to come in there."""
    smoothing = smoothing if step is own_step else 0.0
    plain, wanted = run(tmp_path, label_smoothing_factor=smoothing)
    trainer, found = run(tmp_path, label_smoothing_factor=smoothing, **WAYS[way](step, monkeypatch))
    assert worst_error(found, wanted) < 1e-4
    for name in ("selfaug/nll", "selfaug/kl"):
        assert trainer.state.log_history[0][name] == pytest.approx(plain.state.log_history[0][name], rel=1e-4)
    assert said == []


@pytest.mark.parametrize("way", WAYS)
def test_a_training_step_that_goes_past_the_model_is_told(tmp_path, monkeypatch, way, said):
    run(tmp_path, steps=3, **WAYS[way](past_step, monkeypatch))
    assert len(said) == 1
    assert "no step goes through SelfAug" in said[0]
    assert "past_step (" in said[0]


@pytest.mark.parametrize("way", ["on the class, later", "on the instance", "a partial"])
def test_a_compute_loss_put_there_later_has_the_term(tmp_path, monkeypatch, way, said):
    """It keeps the labels, as the Trainer's own does with a loss function."""
    stock = Trainer.compute_loss

    def replaced(self, model, inputs, return_outputs=False, **counted):
        return stock(self, model, inputs, return_outputs, **counted)

    _, wanted = run(tmp_path, label_smoothing_factor=0.1)

    def prepare(trainer):
        if way == "on the class, later":
            monkeypatch.setattr(Trainer, "compute_loss", replaced)
        else:
            bound = functools.partial(replaced, trainer)
            trainer.compute_loss = bound if way == "a partial" else MethodType(replaced, trainer)

    _, found = run(tmp_path, label_smoothing_factor=0.1, prepare=prepare)
    assert worst_error(found, wanted) < 1e-4
    assert said == []


def test_a_log_put_on_the_class_later_still_logs_both_terms(tmp_path, monkeypatch):
    """unsloth and others replace methods of the Trainer whenever they are imported."""
    base_log = Trainer.log
    monkeypatch.setattr(Trainer, "log", lambda self, logs, *args, **kwargs: base_log(self, logs, *args, **kwargs))
    trainer, _ = run(tmp_path)
    assert trainer.state.log_history[0]["selfaug/kl"] > 1e-3


def test_somebody_elses_getattribute_is_kept_and_nothing_is_wrapped_twice(tmp_path, monkeypatch, said):
    ours, seen = Trainer.__getattribute__, []

    def theirs(self, name):
        seen.append(name)
        return ours(self, name)

    _, wanted = run(tmp_path, label_smoothing_factor=0.1)
    monkeypatch.setattr(Trainer, "__getattribute__", theirs)
    trainer, found = run(tmp_path, label_smoothing_factor=0.1)
    assert worst_error(found, wanted) < 1e-4
    assert "compute_loss" in seen
    assert "selfaug/kl" in trainer.state.log_history[0]


def test_methods_look_as_they_are_and_mocks_are_left_alone(tmp_path):
    import inspect
    from unittest import mock

    trainer, _ = run(tmp_path)
    for name in ("training_step", "compute_loss", "log"):
        stock = vars(Trainer)[name]
        assert "selfaug" not in stock.__module__
        found = getattr(trainer, name)
        assert inspect.ismethod(found)
        assert found.__self__ is trainer
        assert found.__qualname__ == stock.__qualname__
        assert inspect.signature(found) == inspect.signature(MethodType(stock, trainer))
    with mock.patch.object(trainer, "log") as log:
        trainer.log({"loss": 1.0})
    log.assert_called_once_with({"loss": 1.0})


# forwards


@pytest.fixture
def reference():
    """(loss, gradients) of the stock forward with SelfAug."""
    model = with_lora(base())
    output = model(**batch())
    output.loss.backward()
    metrics.RUNNING.clear()
    return output.loss.item(), taken_gradients(model)


def step_of(model):
    output = model(**batch())
    output.loss.backward()
    return output.loss.item(), taken_gradients(model)


def check(found, wanted):
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert worst_error(found[1], wanted[1]) < 1e-4


def dotted(model, forward):
    vars(model)["forward"] = MethodType(forward, model)


PLACES = {
    "the class": lambda model, patch: patch.setattr(Qwen2ForCausalLM, "forward", own_loss),
    "__dict__": lambda model, patch: dotted(model, own_loss),
    "object.__setattr__": lambda model, patch: object.__setattr__(model, "forward", MethodType(own_loss, model)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("trains", [True, False], ids=["set to train after it", "called straight away"])
def test_a_forward_replaced_after_the_model_was_made_has_the_term(reference, place, trains, monkeypatch, said):
    """In its first step, or with peft until 0.20, which does not call the model but its forward, from the second."""
    model = with_lora(base())
    PLACES[place](model.get_base_model(), monkeypatch)
    if trains:
        model.train()
    found = step_of(model)
    if said:
        assert not trains
        assert "the model's forward was replaced after the model was made, by own_loss (" in said[0]
        found = step_of(model)
    check(found, reference)
    check(step_of(model), reference)
    assert len(said) <= 1


def test_one_that_is_called_past_the_model_is_told_and_has_the_term_from_then_on(reference, monkeypatch, said):
    """`model.forward(...)`, as peft calls it until 0.20."""
    inner = with_lora(base()).get_base_model()
    names = {f"base_model.model.{n}" for n, _ in inner.named_parameters()}
    assert names >= set(reference[1])
    monkeypatch.setattr(Qwen2ForCausalLM, "forward", own_loss)

    def step():
        output = inner.forward(**batch())
        output.loss.backward()
        return output.loss.item(), {f"base_model.model.{n}": g for n, g in taken_gradients(inner).items()}

    assert step()[0] != pytest.approx(reference[0], rel=1e-6)
    assert len(said) == 1
    assert "SelfAug is on, and a step went past it: the model's forward was replaced" in said[0]
    assert is_documented(said[0])
    check(step(), reference)
    assert len(said) == 1


def test_with_strict_that_is_an_error(monkeypatch):
    inner = with_lora(base()).get_base_model()
    monkeypatch.setattr(Qwen2ForCausalLM, "forward", own_loss)
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="a step went past it"):
        inner.forward(**batch()).loss.backward()


def test_a_replaced_forward_is_wrapped_once(monkeypatch):
    model = with_lora(base())
    monkeypatch.setattr(Qwen2ForCausalLM, "forward", own_loss)
    for _ in range(3):
        model.train()
        model(**batch())
    assert vars(Qwen2ForCausalLM)["forward"].__wrapped__ is own_loss


@pytest.mark.parametrize("place", PLACES)
def test_under_the_trainer_its_first_step_has_the_term(tmp_path, place, monkeypatch, said):
    """Liger applied late, by whatever way."""
    _, wanted = run(tmp_path)
    _, found = run(tmp_path, prepare=lambda trainer: PLACES[place](trainer.model.get_base_model(), monkeypatch))
    assert worst_error(found, wanted) < 1e-4
    assert said == []


def test_a_forward_without_a_loss_that_comes_after_good_steps_is_told(said):
    model = with_lora(base())
    for _ in range(3):
        model(**batch()).loss.backward()
    inner = model.get_base_model()
    inner.forward = MethodType(no_loss, inner)
    model(**batch())
    assert len(said) == 1
    assert "a forward returned without a loss" in said[0]


def test_a_second_run_of_a_model_that_had_good_steps_is_told_that_it_goes_past(tmp_path, said):
    trainer, _ = run(tmp_path, steps=2)
    options = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
                                max_steps=3, label_names=["labels"])  # fmt: skip
    OwnLoss(trainer.model, options, train_dataset=Rows(4)).train()
    assert len(said) == 1
    assert "OwnLoss computed its loss without it" in said[0]


def test_the_gradients_watch_leaves_copies_and_checkpoints_alone(tmp_path):
    import copy

    model = with_lora(base())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(model, tmp_path / "model.pt")
        copied = copy.deepcopy(model).train()
    loaded = torch.load(tmp_path / "model.pt", weights_only=False).train()
    wanted = step_of(model)
    for other in (copied, loaded):
        check(step_of(other), wanted)


# full fine-tuning against a cache


@pytest.fixture
def full(tmp_path):
    """A model that trains in full, and the cache of the model that it started from."""
    from selfaug import config, reference_cache

    folder = tmp_path / "cache"
    rows = Rows(4)
    data = [{name: rows[i][name].tolist() for name in ("input_ids", "labels")} for i in range(4)]
    reference_cache.build(base(), data, config.Settings(reference_cache=str(folder)))
    with settings(SELFAUG_CACHE=str(folder)):
        yield base().train()


def test_full_fine_tuning_that_goes_past_the_model_is_told(full, tmp_path, said):
    class Past(Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            logits = model.lm_head(model.model(inputs["input_ids"])[0])
            return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())

    options = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
                                max_steps=3, per_device_train_batch_size=4, label_names=["labels"])  # fmt: skip
    Past(full, options, train_dataset=Rows(4)).train()
    assert len(said) == 1
    assert "Past computed its loss without it" in said[0]


def test_full_fine_tuning_whose_forward_is_replaced_is_told(full, monkeypatch, said):
    monkeypatch.setattr(Qwen2ForCausalLM, "forward", own_loss)
    full.forward(**Rows(4).data).loss.backward()
    assert len(said) == 1
    assert "a step went past it" in said[0]


# positional labels


@pytest.mark.parametrize("evaluation", [False, True])
def test_positional_labels_are_labels(evaluation):
    """In training, and in an evaluation that SELFAUG_EVAL puts the term into."""
    model, data = with_lora(base()), batch()
    inner = model.get_base_model()
    names = list(__import__("inspect").signature(Qwen2ForCausalLM.forward).parameters)[1:]
    positional = [data.get(name) for name in names[: names.index("labels") + 1]]
    if evaluation:
        model.eval()
    with settings(SELFAUG_EVAL=str(int(evaluation))):
        wanted, found = inner(**data).loss.item(), inner(*positional).loss.item()
    with settings(SELFAUG="0"):
        stock = inner(**data).loss.item()
    assert found == wanted
    assert found - stock > 1e-3


# silence

SCRIPT = """
import logging, sys, warnings
sys.path[:0] = [r"{tests}", r"{tests}/runtime", r"{tests}/trainers"]
import conftest
{silence}
import torch, transformers
from test_contracts import no_loss
from types import MethodType
from tiny import base, batch, with_lora
{late}
model = with_lora(base())
inner = model.get_base_model()
inner.forward = MethodType(no_loss, inner)
for _ in range(3):
    model(**batch())
"""
SILENCED = {
    "nothing": ("", ""),
    "transformers' loggers": ("", "transformers.logging.set_verbosity_error()"),
    "logging": ("logging.disable(logging.CRITICAL)", ""),
    "warnings that go to a logger": ("logging.captureWarnings(True); logging.disable(logging.CRITICAL)", ""),
    "warnings": ("", "warnings.filterwarnings('ignore')"),
    "all": ("logging.disable(logging.CRITICAL)",
            "transformers.logging.set_verbosity_error(); warnings.simplefilter('ignore')"),
}  # fmt: skip


@pytest.mark.parametrize("what", SILENCED)
def test_a_bypass_reaches_stderr_once_whatever_is_silenced(what):
    early, late = SILENCED[what]
    tests = Path(__file__).resolve().parent.parent
    script = SCRIPT.format(tests=tests, silence=early, late=late)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore" if what == "all" else ""}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr.count("SelfAug is on but could not act: a forward returned without a loss") == 1
    assert "BypassWarning: SelfAug is on" in done.stderr


def test_filters_that_make_errors_of_warnings_do_not_stop_a_run():
    model = with_lora(base())
    inner = model.get_base_model()
    inner.forward = MethodType(no_loss, inner)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("error")
        model(**batch())
    assert [w.category for w in shown] == [bypass.BypassWarning]


def test_a_filter_that_names_the_category_is_obeyed():
    model = with_lora(base())
    inner = model.get_base_model()
    inner.forward = MethodType(no_loss, inner)
    with warnings.catch_warnings(record=True) as shown:
        warnings.filterwarnings("ignore", category=bypass.BypassWarning)
        model(**batch())
    assert shown == []
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=bypass.BypassWarning)
        model = with_lora(base())
        inner = model.get_base_model()
        inner.forward = MethodType(no_loss, inner)
        with pytest.raises(bypass.BypassWarning):
            model(**batch())


def test_that_selfaug_is_on_stays_a_line_of_the_log(said):
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = transformers.utils.logging.get_logger("transformers.selfaug")
    logger.addHandler(handler)
    with_lora(base(), perturbed=False)(**batch())
    logger.removeHandler(handler)
    assert [line[:14] for line in lines] == ["SelfAug is on:"]
    assert said == []


def test_the_trainer_is_attached_to_once():
    before = Trainer.__getattribute__
    attach.to_trainer()
    assert Trainer.__getattribute__ is before
    assert hooks._is_wrapped(vars(Qwen2ForCausalLM)["forward"])
