"""SELFAUG_ANCHORS=1: a row without labels takes the KL at all its tokens and weighs as a mean row with labels."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tiny import V, base, settings, taken_gradients, with_lora, worst_error
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother

from selfaug import positions
from selfaug.trainers import anchors, bypass, metrics

T = 9
PROMPTS = (4, 6, T, 3, T)  # the prompt of the third and of the fifth is all there is: anchors


class Rows(torch.utils.data.Dataset):
    def __init__(self, prompts=PROMPTS):
        self.ids = torch.randint(0, V, (len(prompts), T), generator=torch.Generator().manual_seed(3))
        self.labels = self.ids.clone()
        for row, prompt in enumerate(prompts):
            self.labels[row, :prompt] = -100

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i], "attention_mask": torch.ones_like(self.ids[i])}

    def batch(self):
        return {name: torch.stack([row[name] for row in self]) for name in self[0]}


def objective(model, untouched, rows, reduction, alpha=0.5):
    """The loss of a global batch by its definition: the NLL's mean, the KL of the rows with labels, and the KL of each
    anchor, a mean over its tokens, with the weight that a mean row with labels has.
    """
    data = rows.batch()
    labels = data.pop("labels")
    log_p = model(**data).logits.double().log_softmax(-1)
    log_q = untouched(**data).logits.detach().double().log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    supervised, aligned = following != -100, labels == -100
    labelled = supervised.any(-1)
    nll = -log_p.gather(-1, following.clamp(min=0).unsqueeze(-1)).squeeze(-1)[supervised]
    count = len(nll)
    if reduction == "token":
        usual = kl[labelled][aligned[labelled]].mean()
    else:
        usual = sum(
            supervised[row].sum() / count * kl[row][aligned[row]].mean() for row in labelled.nonzero().squeeze(-1)
        )
    anchors = sum(kl[row][aligned[row]].mean() / labelled.sum() for row in (~labelled).nonzero().squeeze(-1))
    return nll.mean() + alpha * (usual + anchors)


@pytest.mark.parametrize("reduction", ["token", "sequence"])
@pytest.mark.parametrize("extra", [{}, {"logits_to_keep": T}], ids=["fused", "around"])
def test_an_anchor_weighs_as_a_mean_row_with_labels_in_a_batch_of_both(reduction, extra):
    untouched, rows = base(), Rows()
    model = with_lora(copy.deepcopy(untouched))
    wanted = objective(model, untouched, rows, reduction)
    wanted.backward()
    wanted_gradients = taken_gradients(model)
    with settings(SELFAUG_ANCHORS="1", SELFAUG_REDUCTION=reduction):
        found = model(**rows.batch(), **extra).loss
        found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert worst_error(taken_gradients(model), wanted_gradients) < 1e-4


def step(tmp_path, rows, **arguments):
    """The gradients of one optimizer step of an HF Trainer, and its logs."""
    metrics.RUNNING.clear()
    model, found = with_lora(base()), {}

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.update({n: p.grad.double().clone() for n, p in model.named_parameters() if p.grad is not None})

    options = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.0, "max_grad_norm": 0.0, **arguments}
    trainer = Trainer(
        model,
        TrainingArguments(
            tmp_path, report_to=[], save_strategy="no", use_cpu=True, seed=1, label_names=["labels"],
            disable_tqdm=True, **options,
        ),
        train_dataset=rows,
        callbacks=[Note()],
    )  # fmt: skip
    trainer.train()
    return found, trainer.state.log_history[0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["model's loss", "trainer's loss"])
@pytest.mark.parametrize(("size", "accumulated"), [(1, 5), (2, 3), (4, 2)])
def test_a_global_batch_has_the_same_gradient_however_its_anchors_lie_in_micro_batches(
    tmp_path, size, accumulated, smoothing
):
    """With one row a micro-batch, an anchor is alone in its own: without the setting it weighs nothing there."""
    rows = Rows()
    with settings(SELFAUG_ANCHORS="1", SELFAUG_REDUCTION="sequence"):
        whole, _ = step(tmp_path, rows, per_device_train_batch_size=5, label_smoothing_factor=smoothing)
        split, _ = step(
            tmp_path,
            rows,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulated,
            label_smoothing_factor=smoothing,
        )
    assert worst_error(split, whole) < 1e-4
    if not smoothing:
        untouched = base()
        model = with_lora(copy.deepcopy(untouched))
        objective(model, untouched, rows, "sequence").backward()
        assert worst_error(whole, taken_gradients(model)) < 1e-4


def test_an_optimizer_step_of_anchors_alone_has_the_mean_of_their_kls(tmp_path):
    rows = Rows((T, T))
    with settings(SELFAUG_ANCHORS="1"):
        found, log = step(tmp_path, rows, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    untouched = base()
    model = with_lora(copy.deepcopy(untouched))
    data = rows.batch()
    data.pop("labels")
    log_p, log_q = (one(**data).logits.double().log_softmax(-1) for one in (model, untouched))
    (0.5 * (log_q.detach().exp() * (log_q.detach() - log_p)).sum(-1).mean()).backward()
    assert worst_error(found, taken_gradients(model)) < 1e-4
    assert log["selfaug/kl"] > 1e-3


def test_an_anchor_alone_in_a_micro_batch_has_the_mean_of_its_kls_where_the_trainers_loss_is_a_mean(
    tmp_path, monkeypatch
):
    """The smoother is not told how many tokens the global batch has, as until transformers 5.14."""
    call = LabelSmoother.__call__
    monkeypatch.setattr(LabelSmoother, "__call__", lambda self, output, labels, shift_labels=False, **counts: call(
        self, output, labels, shift_labels
    ))  # fmt: skip
    arguments = {"per_device_train_batch_size": 1, "label_smoothing_factor": 0.1}
    with settings(SELFAUG_ANCHORS="1"):
        alone, _ = step(tmp_path, Rows((4,)), **arguments)
        both, _ = step(tmp_path, Rows((4, T)), gradient_accumulation_steps=2, **arguments)
    untouched = base()
    model = with_lora(copy.deepcopy(untouched))
    data = {name: value[1:] for name, value in Rows((4, T)).batch().items() if name != "labels"}
    log_p, log_q = (one(**data).logits.double().log_softmax(-1) for one in (model, untouched))
    (0.5 * (log_q.detach().exp() * (log_q.detach() - log_p)).sum(-1).mean()).backward()
    anchor = taken_gradients(model)
    assert worst_error({name: both[name] - alone[name] for name in both}, anchor) < 1e-3


SMOOTHER = LabelSmoother.__call__
BARELY = 1e-12  # a label smoothing that changes nothing


def mean_loss(outputs, labels, **_):
    """A compute_loss_func that is not told the global batch's tokens."""
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    return torch.nn.functional.cross_entropy(outputs.logits.flatten(0, 1), following.flatten(), ignore_index=-100)


def tells_nothing(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    """A trainer whose smoother would take the count, and does not get it, as ms-swift's."""
    labels = inputs.pop("labels")
    return self.label_smoother(model(**inputs), labels, shift_labels=True)


@pytest.mark.parametrize("kind", ["compute_loss_func", "smoother without a count", "smoother that is not told"])
def test_an_anchor_beside_labels_weighs_as_a_mean_row_of_the_micro_batch_where_the_loss_is_its_mean(
    tmp_path, monkeypatch, kind
):
    monkeypatch.setattr(anchors, "tokens", lambda state: 50.0)  # of a mean row of the global batch; here T - 4
    arguments, rows = {"per_device_train_batch_size": 2, "label_smoothing_factor": BARELY}, Rows((4, T))
    if kind == "compute_loss_func":
        init = Trainer.__init__
        monkeypatch.setattr(Trainer, "__init__", lambda *a, **k: init(*a, compute_loss_func=mean_loss, **k))
    elif kind == "smoother without a count":
        monkeypatch.setattr(LabelSmoother, "__call__", lambda self, output, labels, shift_labels=False, **_: SMOOTHER(
            self, output, labels, shift_labels
        ))  # fmt: skip
    else:
        monkeypatch.setattr(Trainer, "compute_loss", tells_nothing)
        arguments["max_steps"] = 2  # the first shows that the smoother is not told
    untouched = base()
    model = with_lora(copy.deepcopy(untouched))
    objective(model, untouched, rows, "token").backward()
    with settings(SELFAUG_ANCHORS="1", SELFAUG_REDUCTION="token"):
        found, _ = step(tmp_path, rows, **arguments)
    assert worst_error(found, taken_gradients(model)) < 1e-4


def test_anchors_of_different_lengths_alone_in_a_micro_batch_weigh_the_same_where_the_loss_is_its_mean():
    labels = torch.full((2, 8), -100)
    mask = torch.ones_like(labels)
    mask[1, 2:] = 0
    for reduction in ("token", "sequence"):
        found = positions.select(labels, mask, None, "input", reduction, False, anchors=True, anchor_tokens=50.0)
        weights = found.kl_weight / found.divisor(None, torch.device("cpu"))
        assert weights.tolist() == pytest.approx([1 / 16] * 8 + [1 / 4] * 2)


@pytest.mark.parametrize("together", [True, False])
def test_rows_are_counted_over_the_processes_where_the_trainer_counts_its_tokens_so(tmp_path, monkeypatch, together):
    found, count = [], anchors.count
    monkeypatch.setattr(anchors, "count", lambda *given: [found.append(given[-1]), count(*given)])
    with settings(SELFAUG_ANCHORS="1"):
        step(tmp_path, Rows(), per_device_train_batch_size=5, average_tokens_across_devices=together)
    assert found == [together]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    reduced = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: reduced.append(tensor.tolist()))
    state = TrainerState()
    count(state, [Rows().batch()], torch.device("cpu"), together)
    assert reduced == ([[14, 3, 5]] if together else [])
    assert anchors.tokens(state) == pytest.approx(14 / 3)


def test_batches_of_other_tasks_are_not_counted():
    state = TrainerState()
    odd = [{"labels": torch.tensor([1, 0])}, {"labels": [[1]]}, {"attention_mask": {}}, ["text"], {}]
    anchors.count(state, odd, torch.device("cpu"), True)
    labels = Rows((4, T)).batch()["labels"]
    masks = {"full_attention": torch.ones(2, 1, T, T)}
    anchors.count(state, [*odd, {"labels": labels, "attention_mask": masks}], torch.device("cpu"), True)
    assert anchors.tokens(state) == T - 4
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    anchors.count(state, [{"shift_labels": shifted}], torch.device("cpu"), True)
    assert anchors.tokens(state) == T - 4


@pytest.mark.parametrize("where", ["input", "strict-input", "output", "all"])
def test_an_anchor_takes_the_kl_at_all_its_tokens_whatever_the_positions(where):
    labels = Rows((4, T)).batch()["labels"]
    mask = torch.ones_like(labels)
    mask[1, :2] = 0
    found = positions.select(labels, mask, None, where, "token", False, anchors=True)
    second = found.index[: found.aligned] >= T
    assert (found.index[: found.aligned][second] - T).tolist() == list(range(2, T))
    assert found.kl_weight[second].sum() == pytest.approx(T - 4)
    assert found.anchors == 1


def test_without_the_setting_rows_without_labels_share_the_mean_as_before():
    labels = Rows().batch()["labels"]
    plain = positions.select(labels, None, None, "input", "token", False)
    anchored = positions.select(labels, None, None, "input", "token", False, anchors=True)
    assert len(plain.kl_weight.unique()) == 1
    assert len(anchored.kl_weight.unique()) == 2
    # rows with labels: their supervised tokens (14) over their aligned ones (13); an anchor: 14 / 3 rows over 9 tokens
    assert anchored.kl_weight.unique().tolist() == pytest.approx([14 / 3 / 9, 14 / 13])


@pytest.mark.parametrize(
    ("mask", "ids"),
    [
        (None, [[0, 1, 2, 3, 0, 1, 2, 0, 1]]),
        ([[1, 1, 1, 1, 2, 2, 2, 3, 3]], None),
        ([[7, 7, 7, 7, 4, 4, 4, 7, 7]], None),
    ],
    ids=["position_ids", "a mask that numbers them", "numbers that come again"],
)
def test_packed_documents_without_labels_are_anchors(mask, ids):
    mask, ids = (given and torch.tensor(given) for given in (mask, ids))
    labels = torch.tensor([[-100, -100, 5, 6, -100, -100, -100, -100, 7]])
    found = positions.select(labels, mask, ids, "input", "sequence", False, anchors=True)
    assert found.index[: found.aligned].tolist() == [0, 1, 4, 5, 6, 7]
    # three supervised tokens in two documents: the anchor in the middle weighs 1.5, over its three tokens
    assert found.kl_weight.tolist() == pytest.approx([1, 1, 0.5, 0.5, 0.5, 1])


def test_padding_between_and_beside_numbered_documents_makes_no_row_and_a_mask_of_ones_none_either():
    labels = torch.zeros(1, 9, dtype=torch.long)
    numbered = torch.tensor([[0, 0, 1, 1, 0, 0, 2, 2, 0]])
    assert positions.rows(labels, None, numbered).tolist() == [[0, 0, 0, 0, 0, 0, 1, 1, 1]]
    for mask in ([[1] * 9], [[0, 0, 1, 1, 1, 0, 1, 1, 0]]):
        assert positions.rows(labels, None, torch.tensor(mask)).tolist() == [[0] * 9]


def test_a_run_in_which_no_row_is_an_anchor_is_warned_of(tmp_path):
    with (
        settings(SELFAUG_ANCHORS="1"),
        pytest.warns(bypass.BypassWarning, match="in the whole run every row has labels"),
    ):
        step(tmp_path, Rows((4, 6)), per_device_train_batch_size=2)
    with settings(SELFAUG_ANCHORS="1"), warnings.catch_warnings():
        warnings.simplefilter("error", bypass.BypassWarning)
        step(tmp_path, Rows(), per_device_train_batch_size=5)


def test_a_long_run_is_warned_before_its_end(monkeypatch):
    monkeypatch.setattr(bypass, "AWAITED", 4)
    model, rows = with_lora(base()), Rows((4, 6)).batch()
    with settings(SELFAUG_ANCHORS="1"):
        model(**rows).loss.backward()
        with pytest.warns(bypass.BypassWarning, match="in the first 4 rows every row has labels"):
            model(**rows).loss.backward()
