"""Padding is never aligned: read from every form of mask that stock takes, and without a mask from the pad token."""

from __future__ import annotations

import pytest
import torch
from tiny import base, batch, expected, settings, taken_gradients, with_lora, worst_error
from transformers import Trainer, TrainingArguments

from selfaug import padding
from selfaug.labels import full_labels
from selfaug.trainers import announce, metrics

PAD = 7


def padded(side="right"):
    """Three rows with three pad tokens in row 0, which no other row has, and the mask that says so."""
    data = batch(side)
    data["input_ids"] = torch.where(data["input_ids"] == PAD, PAD + 1, data["input_ids"])
    data["input_ids"][data["attention_mask"] == 0] = PAD
    data["labels"] = torch.where(data["labels"] == PAD, PAD + 1, data["labels"])
    return data


def agree_without_the_mask(model, data):
    """The step without a mask is what the oracle says with padding left out. Right padding changes no other state."""
    real = data["attention_mask"]
    unmasked = {name: value for name, value in data.items() if name != "attention_mask"}
    answer, wanted = expected(model, unmasked, real=real)
    metrics.RUNNING.clear()
    model(**unmasked).loss.backward()
    assert metrics.RUNNING.take()["selfaug/kl"] == pytest.approx(answer.kl, rel=1e-5)
    assert worst_error(taken_gradients(model), wanted) < 3e-4


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("named_by", ["config", "generation_config"])
def test_without_a_mask_padding_is_told_by_the_models_pad_token(named_by, side):
    model = base()
    getattr(model, named_by).pad_token_id = PAD
    if side == "left":  # the last of a run at the left may be the beginning-of-text token
        data = padded(side)
        data["attention_mask"][0, 2] = 1
        agree_without_the_mask(with_lora(model), data)
    else:
        agree_without_the_mask(with_lora(model), padded(side))


def test_the_end_of_text_token_that_a_model_pads_with_is_real_where_it_is_trained():
    ids = torch.tensor([[3, 4, PAD, PAD, PAD]])
    labels = torch.tensor([[-100, 4, PAD, -100, -100]])
    assert padding.without_padding(labels, ids, [PAD]).tolist() == [[True, True, True, False, False]]


def test_without_a_mask_padding_is_told_by_the_tokenizer_of_the_trainer(tmp_path):
    class Tokenizer:
        pad_token_id = PAD

    class Collator:
        tokenizer = Tokenizer()

        def __init__(self):
            self.tokenizer = Tokenizer()

        def __call__(self, rows):
            return {name: torch.stack([row[name] for row in rows]) for name in ("input_ids", "labels")}

    data = padded()
    model = with_lora(base())
    answer, _ = expected(model, {name: data[name] for name in ("input_ids", "labels")}, real=data["attention_mask"])
    rows = [{name: value[i] for name, value in data.items()} for i in range(3)]
    where = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "max_steps": 1}
    arguments = TrainingArguments(tmp_path, per_device_train_batch_size=3, logging_steps=1, **where)
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=Collator())
    trainer.train()
    assert trainer.state.log_history[0]["selfaug/kl"] == pytest.approx(answer.kl, rel=1e-4)


@pytest.fixture
def said(monkeypatch):
    """What SelfAug warned of."""
    messages = []
    monkeypatch.setattr(announce.logger, "warning", messages.append)
    return messages


def test_what_may_be_padding_and_cannot_be_told_is_said_once(said):
    data = padded()
    del data["attention_mask"]
    model = with_lora(base())
    model(**data)
    model(**data)
    (message,) = [message for message in said if "cannot tell padding" in message]
    assert "3 equal tokens" in message
    assert "model.config.pad_token_id" in message


def test_what_may_be_padding_is_said_of_embeddings_too(said):
    data, model = padded(), with_lora(base())
    embeddings = model.get_input_embeddings()(data["input_ids"]).detach()
    model(inputs_embeds=embeddings, labels=data["labels"])
    assert [message for message in said if "3 equal tokens" in message]


def test_rows_of_full_length_without_a_mask_say_nothing(said):
    with_lora(base())(**batch(None))
    assert not [message for message in said if "padding" in message]


def causal(data):
    """(B, 1, T, T) bool: causal, without attention to padding."""
    T = data["input_ids"].shape[1]
    return torch.ones(T, T).tril().bool() & data["attention_mask"].bool()[:, None, None, :]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padding_row_that_was_opened_for_sdpa_is_padding(side):
    data = padded(side)
    allowed = causal(data)
    opened = allowed | ~allowed.any(-1, keepdim=True)
    real = data["attention_mask"].bool()
    for mask in (allowed, opened, torch.zeros(opened.shape).masked_fill(~opened, -1e9)):
        assert torch.equal(padding.real_tokens(mask, data["labels"]), real)


def test_a_block_mask_of_flex_attention_tells_padding_by_its_diagonal():
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    data = padded()
    real = data["attention_mask"].bool()
    shape = {"H": None, "Q_LEN": 11, "KV_LEN": 11, "device": "cpu"}
    mask = flex.create_block_mask(lambda b, h, q, k: (q >= k) & real[b, k], B=3, **shape)
    assert torch.equal(padding.real_tokens(mask, data["labels"]), real)
    shared = flex.create_block_mask(lambda b, h, q, k: q >= k, B=None, **shape)
    assert padding.real_tokens(shared, data["labels"]).all()


def test_the_loss_with_a_block_mask_is_that_with_the_mask_that_it_stands_for():
    """In evaluation: flex attention has no backward on a CPU."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    data = padded()
    real = data["attention_mask"].bool()
    shape = {"B": 3, "H": None, "Q_LEN": 11, "KV_LEN": 11, "device": "cpu"}
    block = flex.create_block_mask(lambda b, h, q, k: (q >= k) & real[b, k], **shape)
    losses = {}
    for implementation, mask in (("sdpa", data["attention_mask"]), ("flex_attention", block)):
        try:
            model = with_lora(base(attn_implementation=implementation)).eval()
        except (ValueError, ImportError):
            pytest.skip("this release has no flex attention")
        for evaluation in (0, 1):
            with settings(SELFAUG_EVAL=evaluation), torch.no_grad():
                losses[implementation, evaluation] = model(**{**data, "attention_mask": mask}).loss.item()
    assert losses["flex_attention", 1] == pytest.approx(losses["sdpa", 1], rel=1e-5)
    assert losses["flex_attention", 1] > losses["flex_attention", 0] + 1e-3


@pytest.mark.parametrize("kept", [0, 3, torch.tensor([4, 5, 6])], ids=repr)
def test_labels_of_another_length_than_what_is_kept_are_refused(kept):
    labels = torch.full((1, 4), 5)
    with pytest.raises(ValueError, match=r"expected labels of 9 positions, .* found 4"):
        full_labels(labels, kept, 9)
