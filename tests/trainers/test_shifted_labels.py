"""Labels that are shifted already: `shift_labels`, as context and sequence parallelism and x/y data have them, alone,
beside `labels`, or under both names. Aligned and supervised positions are those of the un-shifted labels.

The reference is a copy of the model made before LoRA was added.
"""

from __future__ import annotations

import copy

import pytest
import torch
from test_contracts import is_documented
from test_hooks import own_loss
from test_trainer import Rows
from tiny import V, base, batch, expected, settings, taken_gradients, with_lora, worst_error
from transformers import Trainer, TrainingArguments
from transformers.loss.loss_utils import ForCausalLMLoss

from selfaug.labels import at_all_positions
from selfaug.trainers import bypass, metrics


def shifted(labels):
    """By its definition: the label of the next token."""
    return torch.cat((labels[:, 1:], torch.full_like(labels[:, :1], -100)), 1)


@pytest.fixture
def case():
    """(model with LoRA, data, loss and gradients that they must give by the oracle)."""
    plain = base()
    reference = copy.deepcopy(plain).eval()
    model, data = with_lora(plain), batch()
    with torch.no_grad():
        logits = reference(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits
    answer, gradients = expected(model, data, reference=logits)
    metrics.RUNNING.clear()
    return model, data, answer, gradients


def check(case, loss):
    model, _, answer, gradients = case
    loss.backward()
    assert loss.item() == pytest.approx(answer.loss, rel=1e-5)
    assert worst_error(taken_gradients(model), gradients) < 1e-4
    logs = metrics.RUNNING.take()
    assert logs["selfaug/kl"] == pytest.approx(answer.kl, rel=1e-4)
    assert logs["selfaug/nll"] == pytest.approx(answer.nll, rel=1e-4)


@pytest.mark.parametrize("labels", ["un-shifted", "shifted", "anything"])
def test_shift_labels_beside_labels_give_the_numbers_of_the_unshifted_ones(case, labels, said):
    """transformers' context parallelism gives both, its DeepSpeed loss the shifted ones twice; stock's loss looks at
    `shift_labels` alone.
    """
    model, data, _, _ = case
    shift = shifted(data["labels"])
    beside = {"un-shifted": data["labels"], "shifted": shift.clone(), "anything": data["input_ids"]}[labels]
    check(case, model(**{**data, "labels": beside}, shift_labels=shift).loss)
    assert said == []


def test_inputs_and_targets_of_the_same_length_have_their_last_target(said):
    """x = ids[:-1], y = ids[1:]: the last position is supervised, by a token that is not among the inputs."""
    plain = base()
    reference = copy.deepcopy(plain).eval()
    model, data = with_lora(plain), batch(padding=None)
    x, y = {"input_ids": data["input_ids"][:, :-1]}, data["labels"][:, 1:].contiguous()
    logits = model(**x).logits
    with torch.no_grad():
        base_log_probs = reference(**x).logits.double().log_softmax(-1)
    log_probs = logits.double().log_softmax(-1)
    aligned = data["labels"][:, :-1] == -100
    kl = (base_log_probs.exp() * (base_log_probs - log_probs)).sum(-1)[aligned].mean()
    nll = torch.nn.functional.cross_entropy(log_probs.flatten(0, 1), y.flatten())
    (nll + 0.5 * kl).backward()
    wanted = taken_gradients(model)
    metrics.RUNNING.clear()
    loss = model(**x, labels=x["input_ids"], shift_labels=y).loss
    loss.backward()
    assert loss.item() == pytest.approx((nll + 0.5 * kl).item(), rel=1e-5)
    assert worst_error(taken_gradients(model), wanted) < 1e-4
    assert metrics.RUNNING.take()["selfaug/nll"] == pytest.approx(nll.item(), rel=1e-4)


def test_the_own_label_of_a_first_token_follows_its_next_label_where_only_shifted_labels_are_known():
    labels = torch.tensor([[-100, -100, 5, 6], [4, 5, 6, 7]])
    own, next_labels = at_all_positions(shifted(labels), {"shift_labels": shifted(labels)}, 4)
    assert (own == -100).tolist() == (labels == -100).tolist()
    assert torch.equal(next_labels, shifted(labels))


@pytest.mark.parametrize("kept", ["int", "mask"])
def test_shift_labels_that_are_cut_as_the_logits_are_go_back_to_their_places(case, kept, said):
    model, data, _, _ = case
    shift = shifted(data["labels"])
    mask = (shift != -100).any(0)
    if kept == "mask":
        keep, cut = mask.nonzero().squeeze(-1), shift[:, mask]
    else:
        keep = cut = int(shift.shape[1] - mask.nonzero()[0])
        cut = shift[:, -keep:].contiguous()
    check(case, model(**{**data, "labels": cut}, shift_labels=cut, logits_to_keep=keep).loss)
    assert said == []


def test_shift_labels_alone_have_no_loss_in_stock_and_that_is_said(case, said):
    """DeepSpeed's own tutorial: the loop makes its loss from the logits."""
    model, data, _, _ = case
    shift = shifted(data.pop("labels"))
    logits = model(**data, shift_labels=shift).logits
    assert torch.isfinite(ForCausalLMLoss(logits, None, V, shift_labels=shift))
    assert len(said) == 1
    assert "a forward returned without a loss that the term could be added to" in said[0]


def test_a_foreign_forward_that_takes_them_gets_the_term(case, said):
    model, data, _, _ = case
    inner = model.get_base_model()

    def foreign(input_ids=None, attention_mask=None, shift_labels=None, **kwargs):
        return own_loss(inner, input_ids, attention_mask, torch.cat((shift_labels[:, :1], shift_labels[:, :-1]), 1))

    inner.forward = foreign
    shift = shifted(data.pop("labels"))
    check(case, model(**data, shift_labels=shift).loss)
    assert said == []


class Shifted(Rows):
    def __init__(self, names):
        super().__init__()
        self.data["shift_labels"] = shifted(self.data["labels"])
        if "labels" not in names:
            del self.data["labels"]

    def __len__(self):
        return len(self.data["input_ids"])


class SharedLoss(Trainer):
    """transformers/integrations/deepspeed.py:deepspeed_sp_compute_loss, without the sum over processes."""

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        if "labels" not in inputs:
            inputs["labels"] = inputs["shift_labels"]
        return model(**inputs).loss


def one_step(tmp_path, cls, rows, **arguments):
    options = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
                                max_steps=1, logging_steps=1, per_device_train_batch_size=8,
                                remove_unused_columns=False, label_names=["labels"], **arguments)  # fmt: skip
    trainer = cls(with_lora(base()), options, train_dataset=rows)
    trainer.train()
    return trainer.state.log_history[0]


@pytest.mark.parametrize("names", [("labels", "shift_labels"), ("shift_labels",)], ids=["both", "shift_labels alone"])
def test_a_trainer_that_gives_shift_labels_logs_what_one_with_labels_logs(tmp_path, names, said):
    plain, found = one_step(tmp_path, Trainer, Rows()), one_step(tmp_path, SharedLoss, Shifted(names))
    for name in ("loss", "grad_norm", "selfaug/nll", "selfaug/kl"):
        assert found[name] == pytest.approx(plain[name], rel=1e-4)
    assert said == []


def test_trls_fused_head_with_shift_labels_alone_gets_the_term(tmp_path, said):
    utils = pytest.importorskip("trl.trainer.utils")
    if not hasattr(utils, "add_fused_lm_head"):
        pytest.skip("TRL until 1.14 has no fused head")

    class Fused(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs, fused_lm_head=True)
            return -outputs.log_probs.sum() / num_items_in_batch

        def get_batch_samples(self, epoch_iterator, num_batches, *device):
            rows, _ = super().get_batch_samples(epoch_iterator, num_batches, *device)
            return rows, sum((row["shift_labels"] != -100).sum() for row in rows)

    def fused():
        model = base()
        utils.add_fused_lm_head(model)
        return with_lora(model)

    plain = one_step(tmp_path, Trainer, Rows())
    options = TrainingArguments(tmp_path, report_to=[], save_strategy="no", disable_tqdm=True, use_cpu=True,
                                max_steps=1, logging_steps=1, per_device_train_batch_size=8,
                                remove_unused_columns=False, label_names=["labels"])  # fmt: skip
    trainer = Fused(fused(), options, train_dataset=Shifted(("shift_labels",)))
    trainer.train()
    for name in ("loss", "grad_norm", "selfaug/nll", "selfaug/kl"):
        assert trainer.state.log_history[0][name] == pytest.approx(plain[name], rel=1e-4)
    assert said == []


SPLITTERS = {
    "parallelism_config": lambda patch: patch.setitem(
        __import__("accelerate").state.AcceleratorState._shared_state,
        "parallelism_config",
        type("Plan", (), {"cp_size": 1, "sp_size": 2}),
    ),
    "DeepSpeed": lambda patch: patch.setitem(
        __import__("sys").modules,
        "deepspeed.utils.groups",
        type("Groups", (), {"_get_sequence_parallel_world_size": staticmethod(lambda: 2)}),
    ),
    "ms-swift": lambda patch: patch.setitem(
        __import__("sys").modules,
        "swift.sequence_parallel",
        type("Swift", (), {"sequence_parallel": type("It", (), {"world_size": 2})}),
    ),
    "shift_labels are given in a run of several processes": None,
}


@pytest.mark.parametrize("name", SPLITTERS)
def test_sequences_that_processes_share_train_on_stocks_loss_and_that_is_said(case, name, monkeypatch, said):
    model, data, _, _ = case
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *group: 2)
    if SPLITTERS[name]:
        SPLITTERS[name](monkeypatch)
    else:
        data = {**data, "shift_labels": shifted(data["labels"])}
    found = model(**data).loss
    with settings(SELFAUG="0"):
        assert torch.equal(found, model(**data).loss)
    assert len(said) == 1
    assert name in said[0]
    assert "the KL's mean needs the whole one" in said[0]
    assert is_documented(said[0]) or name != "parallelism_config"
    with settings(SELFAUG_STRICT="1"), pytest.raises(bypass.BypassError, match="the KL's mean needs the whole one"):
        model(**data)
