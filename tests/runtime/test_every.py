"""SELFAUG_EVERY=k: the term at one of every k micro-batches, with k times its weight; the others are stock's."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from test_trainer import Rows, train
from tiny import base, batch, expected, settings, taken_gradients, with_lora, worst_error
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2ForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from selfaug import config
from selfaug.reference import decoder
from selfaug.trainers import metrics, turns


class Varied(Rows):
    """Rows with prompts of different lengths."""

    def __init__(self, n=16):
        self.data = batch(padding=None, prompts=[3 + i % 5 for i in range(n)], B=n)


@pytest.fixture
def reference_passes(monkeypatch):
    """One entry for each reference pass."""
    made = []
    states = decoder.hidden_states

    def noting(*args, **kwargs):
        made.append(1)
        return states(*args, **kwargs)

    monkeypatch.setattr(decoder, "hidden_states", noting)
    return made


@pytest.mark.parametrize("every", [1, 2, 3, 8])
def test_each_block_has_the_term_once_and_every_place_of_it_equally_often(every):
    blocks = 800
    places = Counter()
    for block in range(blocks):
        (place,) = [i for i in range(every) if turns.has_term(block * every + i, every)]
        places[place] += 1
    spread = 4 * (blocks / every) ** 0.5  # four standard deviations
    assert all(abs(places[i] - blocks / every) <= (spread if every > 1 else 0) for i in range(every))


@pytest.mark.parametrize("extra", [{}, {"logits_to_keep": 11}], ids=["fused", "around"])
def test_one_call_of_k_has_k_times_the_term_and_the_others_have_stocks_loss_and_gradient(extra, reference_passes):
    base_model = base()
    model, data = with_lora(copy.deepcopy(base_model)), batch()
    with torch.no_grad():
        reference = base_model(data["input_ids"], attention_mask=data["attention_mask"]).logits
    plain, plain_gradients = expected(model, data, reference, alpha=0.0)
    tripled, tripled_gradients = expected(model, data, reference, alpha=1.5)
    with settings(SELFAUG_EVERY="3", SELFAUG_ALPHA="0.5"):
        found = []
        for _ in range(3):
            loss = model(**data, **extra).loss
            loss.backward()
            found.append((loss.item(), taken_gradients(model)))
    found.sort(key=lambda one: one[0])
    for (loss, gradients), wanted, wanted_gradients in zip(
        found, (plain, plain, tripled), (plain_gradients, plain_gradients, tripled_gradients)
    ):
        assert loss == pytest.approx(wanted.loss, rel=1e-5)
        assert worst_error(gradients, wanted_gradients) < 1e-4
    assert tripled.loss - plain.loss > 1e-2
    assert len(reference_passes) == 1


class Wrapped(Qwen2ForCausalLM):
    """A class of a user's own, whose forward calls the patched one."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Checkpointed(Qwen2ForCausalLM):
    """The whole model is computed again in the backward pass."""

    def __call__(self, *args, **kwargs):
        if not self.training:
            return super().__call__(*args, **kwargs)
        loss = checkpoint(lambda: super(Checkpointed, self).__call__(*args, **kwargs).loss, use_reentrant=False)
        return CausalLMOutputWithPast(loss=loss)


@pytest.mark.parametrize("cls", [Qwen2ForCausalLM, Wrapped, Checkpointed])
def test_each_block_has_the_term_once_however_often_a_call_runs_the_forward(cls):
    torch.manual_seed(0)
    model, data = with_lora(cls(base().config)), batch()
    with settings(SELFAUG="0"):
        stock = model(**data).loss.item()
    with settings(SELFAUG_EVERY="4"):
        found = []
        for _ in range(24):
            loss = model(**data).loss
            loss.backward()
            found.append(loss.item() != pytest.approx(stock, rel=1e-6))
    assert [sum(found[at : at + 4]) for at in range(0, 24, 4)] == [1] * 6


def test_a_run_that_is_shorter_than_a_block_is_refused(tmp_path):
    arguments = {"max_steps": 3, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    with settings(SELFAUG_EVERY="7"), pytest.raises(config.SettingError, match="this run has 6, so it may have none"):
        train(tmp_path, **arguments)
    with settings(SELFAUG_EVERY="6"):
        assert [log for log in train(tmp_path, **arguments).state.log_history if "selfaug/kl" in log]


def test_a_log_of_micro_batches_without_the_term_shows_no_kl(tmp_path):
    """Four logs for each block of four micro-batches: one has the term."""
    with settings(SELFAUG_EVERY="4"):
        logs = train(tmp_path, max_steps=8).state.log_history[:8]
    kls = [log["selfaug/kl"] for log in logs if "selfaug/kl" in log]
    assert len(kls) == 2
    assert min(kls) > 1e-3
    assert all("selfaug/nll" in log for log in logs)


def test_an_evaluation_has_the_whole_term_in_every_batch():
    model, data = with_lora(base()).eval(), batch()
    with settings(SELFAUG_EVAL="1"):
        whole = model(**data).loss.item()
        with settings(SELFAUG_EVERY="4"):
            assert [model(**data).loss.item() for _ in range(4)] == [whole] * 4


@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["model's loss", "trainer's loss"])
def test_each_optimizer_step_has_its_share_under_gradient_accumulation(tmp_path, smoothing, reference_passes):
    arguments = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "max_steps": 3}
    with settings(SELFAUG_EVERY="2"):
        logs = train(tmp_path, label_smoothing_factor=smoothing, **arguments).state.log_history
    assert len(reference_passes) == 3 * 2
    assert all(log["selfaug/kl"] > 1e-3 for log in logs[:3])


def test_the_logs_have_the_kl_over_the_positions_that_were_looked_at(tmp_path):
    """Rows alike and no learning: the mean over a half of the micro-batches is near that over all of them. A mean that
    counts the others' positions, too, is half of it.
    """
    arguments = {"gradient_accumulation_steps": 2, "max_steps": 4, "logging_steps": 4, "learning_rate": 0.0}
    whole = train(tmp_path, **arguments).state.log_history[0]
    with settings(SELFAUG_EVERY="2"):
        half = train(tmp_path, **arguments).state.log_history[0]
    assert half["selfaug/kl"] == pytest.approx(whole["selfaug/kl"], rel=0.2)
    assert half["selfaug/nll"] == pytest.approx(whole["selfaug/nll"], rel=1e-5)
    assert half["selfaug/alpha"] == 0.5


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    arguments = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    with settings(SELFAUG_EVERY="3"):
        whole = train(tmp_path / "whole", **arguments)
        first = train(tmp_path / "first", **{**arguments, "save_strategy": "steps", "save_steps": 3})
        model = with_lora(base())
        trainer = type(first)(model, first.args, train_dataset=Rows())
        trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-3"))
    kls = [[log.get("selfaug/kl") for log in run.state.log_history if "loss" in log] for run in (whole, trainer)]
    assert [kl is None for kl in kls[1]] == [kl is None for kl in kls[0]]
    assert [kl for kl in kls[1] if kl] == pytest.approx([kl for kl in kls[0] if kl], rel=1e-4)
    for name, parameter in whole.model.named_parameters():
        assert torch.allclose(parameter, trainer.model.get_parameter(name), rtol=1e-4, atol=1e-6), name


def test_a_trainers_evaluation_on_the_way_does_not_move_the_turns(tmp_path):
    arguments = {"max_steps": 4, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    with settings(SELFAUG_EVERY="4", SELFAUG_EVAL="1"):
        plain = train(tmp_path, **arguments)
        evaluated = train(tmp_path, eval_strategy="steps", eval_steps=1, **arguments)
    for name, parameter in plain.model.named_parameters():
        assert torch.equal(parameter, evaluated.model.get_parameter(name)), name


def test_a_cache_keeps_only_the_states_that_were_asked_for(tmp_path, reference_passes):
    """Two rows a step, two epochs of eight rows: with every=2 a half of the micro-batches look at the reference."""
    with settings(SELFAUG_EVERY="2", SELFAUG_CACHE=str(tmp_path / "cache")):
        train(tmp_path, per_device_train_batch_size=2, max_steps=8)
    assert 2 <= len(reference_passes) <= 4
    metrics.RUNNING.clear()


def test_recomputation_by_a_checkpoint_takes_no_turn():
    """The whole model under torch's checkpoint inside an HF Trainer's call sees one number for both passes; here the
    layers are checkpointed, which calls no model again.
    """
    model = with_lora(base())
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    with settings(SELFAUG_EVERY="2"):
        for _ in range(10):
            model(**batch()).loss.backward()
    aligned = metrics.RUNNING.of(model.get_base_model()).aligned
    with settings(SELFAUG_EVERY="1"):
        metrics.RUNNING.clear()
        model(**batch()).loss.backward()
    assert aligned == 5 * metrics.RUNNING.of(model.get_base_model()).aligned


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "two", ""])
def test_a_count_that_is_no_whole_number_above_0_is_refused(value):
    with pytest.raises(config.SettingError, match="SELFAUG_EVERY must be a whole number > 0"):
        config.read(None, {"SELFAUG_EVERY": value})
