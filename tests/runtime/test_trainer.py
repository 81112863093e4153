"""The HF Trainer: both terms in its logs, stock's evaluation, and a loss that gradient accumulation leaves alone."""

from __future__ import annotations

import pytest
import torch
from tiny import base, batch, settings, with_lora
from transformers import Trainer, TrainerCallback, TrainingArguments

from selfaug import metrics


class Rows(torch.utils.data.Dataset):
    """Rows alike in length and prompt, so that every split of them has the same objective."""

    def __init__(self, n=8):
        self.data = batch(padding=None, prompts=[5] * n, B=n)

    def __len__(self):
        return len(self.data["labels"])

    def __getitem__(self, i):
        return {name: value[i] for name, value in self.data.items()}


def train(tmp_path, model=None, callbacks=None, **arguments):
    metrics.RUNNING.clear()
    arguments = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "learning_rate": 1e-2,
        **arguments,
    }
    trainer = Trainer(
        model or with_lora(base()),
        TrainingArguments(
            tmp_path,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=1,
            label_names=["labels"],
            **arguments,
        ),
        train_dataset=Rows(),
        eval_dataset=Rows(),
        callbacks=callbacks,
    )
    trainer.train()
    return trainer


def test_both_terms_are_logged_beside_the_loss(tmp_path):
    logs = train(tmp_path).state.log_history[:2]
    for log in logs:
        assert log["selfaug/alpha"] == 0.5
        assert log["loss"] == pytest.approx(log["selfaug/nll"] + 0.5 * log["selfaug/kl"], rel=1e-3)
    assert logs[0]["selfaug/kl"] > 1e-3


def test_terms_are_averages_since_the_last_log(tmp_path):
    every = train(tmp_path).state.log_history[:2]
    (both,) = train(tmp_path, logging_steps=2).state.log_history[:1]
    for name in ("selfaug/nll", "selfaug/kl"):
        assert both[name] == pytest.approx((every[0][name] + every[1][name]) / 2, rel=1e-4)


@pytest.mark.parametrize("micro_batch", [1, 2])
def test_gradient_accumulation_leaves_loss_and_weights_alone(tmp_path, micro_batch):
    whole = train(tmp_path)
    split = train(tmp_path, per_device_train_batch_size=micro_batch, gradient_accumulation_steps=4 // micro_batch)
    for log, split_log in zip(whole.state.log_history[:2], split.state.log_history[:2]):
        for name in ("loss", "grad_norm", "selfaug/nll", "selfaug/kl"):
            assert split_log[name] == pytest.approx(log[name], rel=1e-3)
    for name, parameter in whole.model.named_parameters():
        assert torch.allclose(parameter, split.model.get_parameter(name), rtol=1e-3, atol=1e-5)


def test_evaluation_is_stocks_and_logs_no_terms(tmp_path):
    trainer = train(tmp_path)
    found = trainer.evaluate()
    with settings(SELFAUG="0"):
        stock = trainer.evaluate()
    assert found["eval_loss"] == stock["eval_loss"]
    assert not [name for log in trainer.state.log_history if "eval_loss" in log for name in log if "selfaug" in name]
    predictions = trainer.predict(Rows())
    assert predictions.predictions.shape == (8, 11, 61)


def test_a_callback_may_change_alpha_on_the_way(tmp_path):
    class Schedule(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            model.config.selfaug = {"alpha": 0.1 * (1 + state.global_step)}

    logs = train(tmp_path, callbacks=[Schedule()]).state.log_history[:2]
    assert [log["selfaug/alpha"] for log in logs] == pytest.approx([0.1, 0.2])


def test_without_selfaug_the_logs_are_stocks(tmp_path):
    with settings(SELFAUG="0"):
        logs = train(tmp_path).state.log_history
    assert not [name for log in logs for name in log if "selfaug" in name]


def test_mixed_precision_training_keeps_logits_lazy(tmp_path, monkeypatch):
    """accelerate converts every tensor of an output to float32; it must not make logits on the way."""
    from selfaug import outputs

    model = with_lora(base())
    made = []
    compute = outputs.LazyLogits.__init__

    def noting(self, function):
        compute(self, lambda: made.append(1) or function())

    monkeypatch.setattr(outputs.LazyLogits, "__init__", noting)
    logs = train(tmp_path, model=model, bf16=True).state.log_history
    assert logs[0]["selfaug/kl"] > 1e-3
    assert made == []
    assert model(**batch()).logits is not None
    assert made == [1]


def test_the_run_says_once_that_selfaug_is_on(tmp_path, monkeypatch, caplog):
    from selfaug import step

    said = []
    monkeypatch.setattr(step, "_announced", False)
    monkeypatch.setattr(step.logger, "warning", said.append)
    train(tmp_path)
    assert said == [
        "SelfAug is on: loss = NLL + 0.5 * KL at input positions, 14 LoRA layers (SELFAUG=0 switches it off)."
    ]


def test_evaluation_contains_the_term_where_the_user_asks_for_it(tmp_path):
    """SELFAUG_EVAL=1: only eval_loss changes; predictions and what compute_metrics sees stay stock's."""
    seen = []

    def note(prediction):
        seen.append(prediction.predictions)
        return {}

    trainer = train(tmp_path)
    trainer.compute_metrics = note
    stock = trainer.evaluate()["eval_loss"]
    plain = trainer.predict(Rows())
    with settings(SELFAUG_EVAL="1", SELFAUG_ALPHA="1"):
        once = trainer.evaluate()["eval_loss"]
        predicted = trainer.predict(Rows())
    with settings(SELFAUG_EVAL="1", SELFAUG_ALPHA="2"):
        twice = trainer.evaluate()["eval_loss"]
    assert once - stock > 1e-3
    assert twice - once == pytest.approx(once - stock, rel=1e-3)
    assert (predicted.predictions == plain.predictions).all()
    assert all((found == seen[0]).all() for found in seen)
    assert metrics.RUNNING.take() == {}


def test_predictions_of_a_patched_trainer_are_stocks_bit_for_bit(tmp_path):
    trainer = train(tmp_path)
    found = trainer.predict(Rows())
    with settings(SELFAUG="0"):
        stock = trainer.predict(Rows())
    assert (found.predictions == stock.predictions).all()
    assert found.metrics["test_loss"] == stock.metrics["test_loss"]
    assert (found.label_ids == stock.label_ids).all()


def test_evaluation_has_the_term_where_the_trainer_keeps_the_labels_too(tmp_path):
    trainer = train(tmp_path, label_smoothing_factor=0.1)
    stock = trainer.evaluate()["eval_loss"]
    with settings(SELFAUG_EVAL="1", SELFAUG_ALPHA="1"):
        once = trainer.evaluate()["eval_loss"]
    with settings(SELFAUG_EVAL="1", SELFAUG_ALPHA="2"):
        twice = trainer.evaluate()["eval_loss"]
    assert once - stock > 1e-3
    assert twice - once == pytest.approx(once - stock, rel=1e-3)


def test_steps_that_a_trainer_did_not_log_are_not_the_next_ones(tmp_path):
    with settings(SELFAUG_ALPHA="0.25"):
        train(tmp_path, logging_steps=5)
    left = metrics.RUNNING.supervised
    first = Trainer(with_lora(base()), TrainingArguments(tmp_path, report_to=[], use_cpu=True))
    assert left > 0
    metrics.RUNNING.belong_to(first)
    assert metrics.RUNNING.supervised == 0
    metrics.RUNNING.supervised = 7
    metrics.RUNNING.belong_to(first)
    assert metrics.RUNNING.supervised == 7
    metrics.RUNNING.clear()
