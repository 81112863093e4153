"""SELFAUG_TARGET_KL=x: alpha follows the measured KL toward x nats per aligned token."""

from __future__ import annotations

import math

import pytest
from test_trainer import Rows, train
from tiny import base, batch, settings, with_lora
from transformers import TrainerCallback

from selfaug import config
from selfaug.trainers import controller


def alphas(trainer):
    return [log["selfaug/alpha"] for log in trainer.state.log_history if "selfaug/alpha" in log]


def kls(trainer):
    return [log["selfaug/kl"] for log in trainer.state.log_history if "selfaug/kl" in log]


@pytest.mark.parametrize("every", [1, 3])
def test_each_log_moves_alpha_by_how_far_the_kl_is_off_and_how_many_steps_it_stands_for(tmp_path, every):
    with settings(SELFAUG_TARGET_KL="0.008"):
        trainer = train(tmp_path, max_steps=6, learning_rate=0.0, logging_steps=every)
    found, measured = alphas(trainer), kls(trainer)
    assert found[0] == 0.5
    for before, kl, after in zip(found, measured, found[1:]):
        assert after == pytest.approx(before * min(max(kl / 0.008, 0.5), 2) ** (every / 20))
        assert after != before
    assert len(found) == 6 // every


@pytest.mark.parametrize(("kl", "end"), [(1e-9, 0.5 / 32), (1e9, 0.5 * 32)])
def test_alpha_stays_within_a_factor_of_32_of_what_was_given(kl, end):
    alpha = 0.5
    for _ in range(7):
        before, alpha = alpha, controller.following(alpha, kl, 500, 0.5, 0.1)
        assert 1 / 2 <= alpha / before <= 2
    assert alpha == pytest.approx(end)


def test_training_ends_near_the_target(tmp_path):
    """A tiny model that learns its eight rows: with alpha 0.5 alone its KL ends elsewhere."""
    long = {"max_steps": 150, "logging_steps": 5, "learning_rate": 2e-2, "lr_scheduler_type": "constant"}
    fixed = sum(kls(train(tmp_path, with_lora(base(), perturbed=False), **long))[-5:]) / 5
    target = fixed / 3
    with settings(SELFAUG_TARGET_KL=f"{target}"):
        trainer = train(tmp_path, with_lora(base(), perturbed=False), **long)
    ended = sum(kls(trainer)[-5:]) / 5
    assert abs(math.log(ended / target)) < 0.5 * math.log(3)
    assert alphas(trainer)[-1] > 0.5


def test_the_loss_has_the_alpha_that_the_logs_show(tmp_path):
    with settings(SELFAUG_TARGET_KL="0.008"):
        logs = train(tmp_path, max_steps=4).state.log_history[:4]
    for log in logs:
        assert log["loss"] == pytest.approx(log["selfaug/nll"] + log["selfaug/alpha"] * log["selfaug/kl"], rel=1e-3)


def test_a_resumed_run_goes_on_with_the_alpha_of_its_checkpoint(tmp_path):
    with settings(SELFAUG_TARGET_KL="0.008"):
        whole = train(tmp_path / "whole", max_steps=6)
        first = train(tmp_path / "first", max_steps=6, save_strategy="steps", save_steps=3)
        trainer = type(first)(with_lora(base()), first.args, train_dataset=Rows())
        trainer.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-3"))
    assert alphas(trainer) == pytest.approx(alphas(whole), rel=1e-4)
    assert len(set(alphas(whole))) == 6


def test_alpha_changes_at_logs_alone(tmp_path):
    seen = []

    class Note(TrainerCallback):
        def on_substep_end(self, args, state, control, model, **kwargs):
            from selfaug.trainers import metrics

            seen.append(metrics.RUNNING.of_owner(state).alpha)

    arguments = {"max_steps": 4, "logging_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    with settings(SELFAUG_TARGET_KL="0.008"):
        trainer = train(tmp_path, callbacks=[Note()], **arguments)
    assert seen == [value for value in alphas(trainer) for _ in range(2)]


def test_an_evaluation_has_the_alpha_that_was_given(tmp_path):
    trainer = train(tmp_path)
    with settings(SELFAUG_EVAL="1"):
        wanted = trainer.evaluate()["eval_loss"]
        with settings(SELFAUG_TARGET_KL="0.01"):
            assert trainer.evaluate()["eval_loss"] == wanted


def test_a_loop_without_a_trainer_is_refused():
    with settings(SELFAUG_TARGET_KL="0.1"), pytest.raises(config.SettingError, match="no HF Trainer calls the model"):
        with_lora(base())(**batch())


def test_a_trainer_that_logs_nothing_is_refused(tmp_path):
    with settings(SELFAUG_TARGET_KL="0.1"), pytest.raises(config.SettingError, match='logging_strategy is "no"'):
        train(tmp_path, logging_strategy="no")


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"max_steps": 6, "logging_steps": 500}, r"the first log comes at step 500 \(logging_steps\) of 6"),
        ({"max_steps": 6, "logging_steps": 6}, r"the first log comes at step 6"),
        ({"max_steps": -1, "num_train_epochs": 1, "logging_strategy": "epoch"}, "with one epoch"),
    ],
)
def test_a_run_that_ends_before_alpha_can_move_is_refused(tmp_path, arguments, found):
    with settings(SELFAUG_TARGET_KL="0.1"), pytest.raises(config.SettingError, match=found):
        train(tmp_path, **arguments)


def test_windows_without_the_term_leave_alpha_as_it_is(tmp_path):
    """With every=4 and a log at each step, three logs of four measure nothing."""
    with settings(SELFAUG_TARGET_KL="0.004", SELFAUG_EVERY="4"):
        trainer = train(tmp_path, max_steps=12, learning_rate=0.0)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert min(kls(trainer)) > 0.004
    found = alphas(trainer)
    assert found == sorted(found), "the KL is above the target: alpha never falls"
    moved = [
        before["step"] for before, after in zip(logs, logs[1:]) if after["selfaug/alpha"] > before["selfaug/alpha"]
    ]
    assert moved == [log["step"] for log in logs[:-1] if "selfaug/kl" in log]


def test_an_alpha_that_a_callback_sets_has_no_effect_beside_a_target(tmp_path):
    class Sets(TrainerCallback):
        def on_step_begin(self, args, state, control, model, **kwargs):
            if state.global_step == 2:
                model.config.selfaug = {"alpha": 50.0}

    with settings(SELFAUG_TARGET_KL="0.008"):
        plain, other = (train(tmp_path, max_steps=5, callbacks=found) for found in ([], [Sets()]))
    assert alphas(other) == alphas(plain)


def test_a_run_in_which_selfaug_has_no_part_is_not_refused(tmp_path):
    model = base().train()
    with settings(SELFAUG_TARGET_KL="0.1"):
        model(**batch()).loss.backward()
        train(tmp_path, base(), logging_strategy="no", max_steps=1)


def test_a_target_needs_an_alpha_to_start_from():
    with pytest.raises(config.SettingError, match=r"SELFAUG_TARGET_KL starts from alpha .* SELFAUG_ALPHA is 0"):
        config.read(None, {"SELFAUG_TARGET_KL": "0.1", "SELFAUG_ALPHA": "0"})
    assert config.read(None, {"SELFAUG_TARGET_KL": "0.1", "SELFAUG_ALPHA": "0", "SELFAUG": "0"}).alpha == 0


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "low", ""])
def test_a_target_that_is_no_number_above_0_is_refused(value):
    with pytest.raises(config.SettingError, match="SELFAUG_TARGET_KL must be a number > 0"):
        config.read(None, {"SELFAUG_TARGET_KL": value})


def test_a_kl_that_is_no_number_leaves_alpha_as_it_is():
    assert controller.following(0.7, math.nan, 20, 0.5, 0.1) == 0.7
