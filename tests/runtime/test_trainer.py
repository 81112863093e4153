"""The HF Trainer: both terms in its logs, stock's evaluation, and a loss that gradient accumulation leaves alone."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from types import SimpleNamespace

import pytest
import torch
from tiny import base, batch, settings, with_lora
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from selfaug.trainers import announce, bypass, metrics


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
            use_cpu=True,
            seed=1,
            label_names=["labels"],
            **{"disable_tqdm": True, "save_strategy": "no", **arguments},
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


@pytest.fixture
def forgotten_precision():
    """accelerate and transformers keep the precision of one Trainer for those after it, in this test only."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)


def test_mixed_precision_training_keeps_logits_lazy(tmp_path, monkeypatch, forgotten_precision):
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
    said = []
    monkeypatch.setattr(announce.logger, "warning", said.append)
    train(tmp_path, with_lora(base(), perturbed=False))
    (line,) = said
    assert line.startswith(
        "SelfAug is on: loss = NLL + 0.5 * KL at input positions, 14 LoRA layers (SELFAUG=0 switches it off). SelfAug "
    )
    assert "Not by default" not in line
    with settings(SELFAUG_ALPHA="0.25"):
        train(tmp_path, with_lora(base(), perturbed=False))
    assert [line[:30] for line in said] == ["SelfAug is on: loss = NLL + 0.", "SelfAug is on: loss = NLL + 0."]
    assert "0.25 * KL" in said[1]
    assert said[1].endswith(" Not by default: SELFAUG_ALPHA=0.25.")


def test_the_line_names_each_setting_that_is_not_at_its_default_with_its_source(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(announce.logger, "warning", said.append)
    model = with_lora(base(), perturbed=False)
    model.config.selfaug = {"positions": "all", "strict": True}
    with settings(SELFAUG_SAMPLE="0.5", SELFAUG_ALPHA="0.5"):
        train(tmp_path, model)
    given = 'SELFAUG_SAMPLE=0.5, model.config.selfaug["positions"]=all, model.config.selfaug["strict"]=1'
    assert said[0].endswith(f" Not by default: {given}.")


def test_a_trainer_that_logs_by_epoch_logs_the_means_of_each_epoch(tmp_path):
    """Two steps an epoch."""
    every = [log for log in train(tmp_path, max_steps=4).state.log_history if "loss" in log]
    epochs = train(tmp_path, max_steps=4, logging_strategy="epoch").state.log_history
    by_epoch = [log for log in epochs if "loss" in log]
    assert [log["epoch"] for log in by_epoch] == [1.0, 2.0]
    for number, log in enumerate(by_epoch):
        for name in ("loss", "selfaug/nll", "selfaug/kl"):
            mean = (every[2 * number][name] + every[2 * number + 1][name]) / 2
            assert log[name] == pytest.approx(mean, rel=1e-3), name


TERMS = ("selfaug/nll", "selfaug/kl", "selfaug/alpha")
STRATEGIES = {"never": {"logging_strategy": "no"}, "seldom": {"logging_steps": 500},
              "by epoch": {"logging_strategy": "epoch"}, "each step": {"logging_steps": 1}}  # fmt: skip


@pytest.mark.parametrize("strategy", ["never", "seldom"])
def test_a_run_that_is_over_before_its_first_log_has_the_means_of_all_its_steps_in_its_last(tmp_path, strategy):
    every = train(tmp_path, max_steps=3).state.log_history[:3]
    (last,) = train(tmp_path, max_steps=3, **STRATEGIES[strategy]).state.log_history
    for name in TERMS:
        assert last[name] == pytest.approx(sum(log[name] for log in every) / 3, rel=1e-4), name
    assert last["train_loss"] == pytest.approx(last["selfaug/nll"] + 0.5 * last["selfaug/kl"], rel=1e-3)


def test_the_last_log_has_the_means_of_the_steps_that_no_other_has(tmp_path):
    every = train(tmp_path, max_steps=3).state.log_history[:3]
    first, last = train(tmp_path, max_steps=3, logging_steps=2).state.log_history
    for name in TERMS:
        assert first[name] == pytest.approx((every[0][name] + every[1][name]) / 2, rel=1e-4), name
        assert last[name] == pytest.approx(every[2][name], rel=1e-4), name


@pytest.mark.parametrize("strategy", ["by epoch", "each step"])
def test_the_last_log_has_no_terms_where_others_have_those_of_all_steps(tmp_path, strategy):
    """Two steps an epoch."""
    logs = train(tmp_path, max_steps=4, **STRATEGIES[strategy]).state.log_history
    assert [set(TERMS) <= set(log) for log in logs] == [True] * (len(logs) - 1) + [False]
    assert not set(TERMS) & set(logs[-1])


@pytest.mark.parametrize("event", ["on_step_end", "on_epoch_end", "on_evaluate"])
def test_a_run_that_a_callback_stops_has_its_terms_in_the_last_log_too(tmp_path, event):
    class Stop(TrainerCallback):
        pass

    def stop(self, args, state, control, **kwargs):
        control.should_training_stop = True

    setattr(Stop, event, stop)
    every = train(tmp_path, max_steps=2).state.log_history[:2]
    evaluation = {"eval_strategy" if hasattr(TrainingArguments, "eval_strategy") else "evaluation_strategy": "epoch"}
    logs = train(tmp_path, max_steps=6, callbacks=[Stop()], logging_steps=500, **evaluation).state.log_history
    steps = 1 if event == "on_step_end" else 2
    assert logs[-1]["step"] == steps
    assert logs[-1]["selfaug/kl"] == pytest.approx(sum(log["selfaug/kl"] for log in every[:steps]) / steps, rel=0.2)


@pytest.mark.parametrize("bar", [True, False])
def test_the_terms_are_in_what_the_trainer_prints(tmp_path, capsys, bar):
    train(tmp_path, disable_tqdm=not bar)
    printed = "".join(capsys.readouterr())
    for name in ("selfaug/nll", "selfaug/kl", "selfaug/alpha"):
        assert printed.count(f"'{name}'") == 2


class Writer:
    """Stands for a SummaryWriter of TensorBoard."""

    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, step))

    def __getattr__(self, name):
        return lambda *arguments, **options: None


def test_the_terms_are_written_to_tensorboard_at_each_logged_step(tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    writer = Writer()
    train(tmp_path, callbacks=[integration_utils.TensorBoardCallback(writer)])
    for name in ("loss", "selfaug/nll", "selfaug/kl", "selfaug/alpha"):
        assert [step for found, step in writer.scalars if found == f"train/{name}"] == [1, 2], name


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


def kls(trainer):
    return [log["selfaug/kl"] for log in trainer.state.log_history if "selfaug/kl" in log]


def one_step(trainer):
    """Train the same Trainer again, for one step that is logged."""
    trainer.args.max_steps = trainer.args.logging_steps = 1
    trainer.train()
    return kls(trainer)


def test_a_second_train_of_the_same_trainer_logs_its_own_steps_alone(tmp_path):
    """model_init: the second train() starts from a fresh LoRA, whose KL at its first step is 0; the two steps of the
    first had a large one.
    """
    made = []

    def fresh(trial=None):
        made.append(with_lora(base(), perturbed=len(made) < 2))  # __init__ makes one, too
        return made[-1]

    arguments = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
                                  max_steps=2, logging_steps=5, per_device_train_batch_size=4, learning_rate=0.0,
                                  label_names=["labels"])  # fmt: skip
    trainer = Trainer(args=arguments, model_init=fresh, train_dataset=Rows())
    trainer.train()
    (kl,) = kls(trainer)  # in the last log
    assert kl > 1e-3
    assert one_step(trainer)[0] < 1e-6
    assert len(made) == 3


def test_a_retry_with_a_smaller_batch_logs_its_own_steps_alone(tmp_path):
    """auto_find_batch_size: the first attempt runs out of memory after a step with four times the KL weight."""

    class Small(TrainerCallback):
        attempts = 0

        def on_train_begin(self, args, state, control, model, **kwargs):
            self.attempts += 1
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data.mul_(1.0 if self.attempts == 1 else 0.0)

        def on_step_end(self, args, state, control, **kwargs):
            if self.attempts == 1:
                raise RuntimeError("CUDA out of memory.")

    callback = Small()
    trainer = train(tmp_path, callbacks=[callback], auto_find_batch_size=True, max_steps=1, learning_rate=0.0)
    assert callback.attempts == 2
    assert kls(trainer)[0] < 1e-6


def test_two_trainers_in_turn_log_their_own_steps(tmp_path):
    train(tmp_path, logging_steps=5)
    assert kls(train(tmp_path, model=with_lora(base(), perturbed=False), max_steps=1))[0] < 1e-6


def test_two_models_in_one_loop_have_sums_of_their_own():
    metrics.RUNNING.clear()
    moved, fresh = with_lora(base()), with_lora(base(), perturbed=False)
    for model in (moved, fresh, moved):
        model(**batch()).loss.backward()
    alone = [metrics.RUNNING.of(model.get_base_model()) for model in (moved, fresh)]
    assert [sums.supervised for sums in alone] == [2 * alone[1].supervised, alone[1].supervised]
    assert alone[0].sums[1] > 1e-3
    assert alone[1].sums[1] < 1e-6


def test_what_is_remembered_of_a_run_goes_with_it():
    import gc

    model = with_lora(base())
    model(**batch()).loss.backward()
    gc.collect()
    before = len(metrics.RUNNING.all())
    del model
    gc.collect()
    assert len(metrics.RUNNING.all()) == before - 1


def test_a_log_of_the_users_own_is_left_alone_and_takes_nothing_from_the_trainers(tmp_path):
    class Logs(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            self.trainer.log({"loss": 1.0})

    callback = Logs()
    plain = train(tmp_path, logging_steps=2)

    class Own(Trainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            callback.trainer = self

    arguments = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, seed=1,
                                  max_steps=2, logging_steps=2, per_device_train_batch_size=4, learning_rate=1e-2,
                                  label_names=["labels"])  # fmt: skip
    own = Own(with_lora(base()), arguments, train_dataset=Rows(), callbacks=[callback])
    own.train()
    assert kls(own) == kls(plain)
    assert [set(log) for log in own.state.log_history if log.get("loss") == 1.0] == [{"loss", "epoch", "step"}] * 2


class Twice(Trainer):
    """Computes its loss in two calls: both on all rows, or with ``halves`` each on a half of them."""

    halves = False

    def compute_loss(self, model, inputs, *args, **kwargs):
        half = len(inputs["labels"]) // 2
        parts = [slice(half), slice(half, None)] if self.halves else [slice(None)] * 2
        given = [{name: value[part] for name, value in inputs.items()} for part in parts]
        compute = super().compute_loss
        return sum(compute(model, one, *args, **kwargs) for one in given)


def smoothed_loss(cls, tmp_path):
    """The loss of a step of four rows at a learning rate of 0, with label smoothing, which keeps the labels."""
    arguments = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, seed=1,
                                  max_steps=1, logging_steps=1, per_device_train_batch_size=4, learning_rate=0.0,
                                  label_names=["labels"], label_smoothing_factor=0.1)  # fmt: skip
    trainer = cls(with_lora(base()), arguments, train_dataset=Rows(4))
    trainer.train()
    return trainer.state.log_history[0]["loss"]


def test_a_compute_loss_that_calls_the_model_twice_has_the_term_of_both_calls(tmp_path):
    terms = []
    for cls in (Trainer, Twice):
        loss = smoothed_loss(cls, tmp_path)
        with settings(SELFAUG="0"):
            terms.append(loss - smoothed_loss(cls, tmp_path))
    assert terms[0] > 1e-3
    assert terms[1] == pytest.approx(2 * terms[0], rel=1e-3)


def test_a_compute_loss_that_calls_the_model_with_other_tokens_than_it_was_given_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(Twice, "halves", True)
    with settings(SELFAUG="0"):
        stock = smoothed_loss(Twice, tmp_path)
    with pytest.warns(bypass.BypassWarning, match="calls the model with other tokens than it was given"):
        assert smoothed_loss(Twice, tmp_path) == stock
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="whose labels SelfAug does not know"):
        smoothed_loss(Twice, tmp_path)


def moved(accumulation, tmp_path, alpha, smoothing=0.1, **options):
    """Minus the gradient of one step on eight rows: how far SGD moves the weights."""
    model = with_lora(base())
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    arguments = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True, seed=1,
                                  max_steps=1, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
                                  max_grad_norm=0.0, per_device_train_batch_size=8 // accumulation,
                                  gradient_accumulation_steps=accumulation, label_smoothing_factor=smoothing,
                                  label_names=["labels"])  # fmt: skip
    with settings(SELFAUG_ALPHA=str(alpha)):
        Trainer(model, arguments, train_dataset=Rows(8), **options).train()
    return {n: (before[n] - p.detach()).double() for n, p in model.named_parameters() if p.requires_grad}


def the_term_changes_as_stock_does(move):
    """Rows are alike in length, so N micro-batches change stock's gradient either not at all or, where each makes a
    mean that nobody divides, N times; and the term's gradient has to change as stock's does. Returns that factor.
    """
    moves = {n: [move(n, alpha) for alpha in (0, 1)] for n in (1, 4)}
    largest = max(moves[1][0], key=lambda name: moves[1][0][name].norm())
    stock = (moves[4][0][largest].norm() / moves[1][0][largest].norm()).item()
    for name in moves[1][0]:
        one, four = (moves[n][1][name] - moves[n][0][name] for n in (1, 4))
        assert (four - round(stock) * one).norm() < 1e-3 * four.norm()
    return pytest.approx(stock, rel=1e-3)


@pytest.mark.parametrize("told", [True, False], ids=["this release", "until 5.14, and ms-swift"])
def test_alpha_means_the_same_with_label_smoothing_and_accumulation(tmp_path, monkeypatch, told):
    """Until 5.14, and in ms-swift, the smoother is not told `num_items_in_batch`: it means each micro-batch alone."""
    call = LabelSmoother.__call__
    if not told:
        monkeypatch.setattr(
            LabelSmoother,
            "__call__",
            lambda self, output, labels, shift_labels=False, **counts: call(self, output, labels, shift_labels),
        )
    factor = the_term_changes_as_stock_does(lambda n, alpha: moved(n, tmp_path, alpha))
    counts = "accepts_loss_kwargs" in inspect.getsource(Trainer)  # transformers from 4.46 on; before it, all is divided
    tells = "num_items_in_batch" in inspect.signature(call).parameters and told
    assert factor == (1 if tells or not counts else 4)


@pytest.mark.skipif(
    "compute_loss_func" not in inspect.signature(Trainer.__init__).parameters, reason="transformers until 4.45"
)
@pytest.mark.parametrize("divides", [True, False])
def test_alpha_means_the_same_with_a_loss_function_of_ones_own_and_accumulation(tmp_path, divides):
    def loss(outputs, labels, reduction):
        logits = outputs["logits"][:, :-1].flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction=reduction)

    def of_the_batch(outputs, labels, num_items_in_batch=None):
        return loss(outputs, labels, "sum") / num_items_in_batch

    def of_the_micro_batch(outputs, labels, **ignored):
        return loss(outputs, labels, "mean")

    mine = of_the_batch if divides else of_the_micro_batch
    factor = the_term_changes_as_stock_does(
        lambda n, alpha: moved(n, tmp_path, alpha, smoothing=0.0, compute_loss_func=mine)
    )
    assert factor == (1 if divides else 4)


@pytest.mark.skipif(
    "compute_loss_func" not in inspect.signature(Trainer.__init__).parameters, reason="transformers until 4.45"
)
def test_a_loss_function_that_may_hide_num_items_is_told_what_it_is_taken_for(tmp_path, caplog):
    def divides(outputs, labels, num_items_in_batch=None):
        return outputs["logits"].float().square().sum() / num_items_in_batch

    @functools.wraps(divides)
    def shown(*args, **kwargs):
        return divides(*args, **kwargs)

    def hidden(*args, **kwargs):
        return divides(*args, **kwargs)

    for function, told in ((divides, 0), (shown, 0), (hidden, 1)):
        caplog.clear()
        moved(1, tmp_path, 0.5, smoothing=0.0, compute_loss_func=function)
        assert caplog.text.count("its loss is taken for a mean over the micro-batch") == told
