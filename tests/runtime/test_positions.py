"""Which positions count, on batches small enough to read."""

from __future__ import annotations

import pytest
import torch

from selfaug import labels, padding, positions

X = -100


def masks(text):
    """Rows of 1 and 0, as bool."""
    return [[c == "1" for c in row] for row in text.split()]


LABELS = torch.tensor(
    [[X, X, X, 5, 6, X], [X, X, 7, 8, X, X]]
)  # row 0 ends in a token that is not trained; row 1 in padding
ATTENTION = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def test_each_position_is_scored_against_the_label_after_it():
    assert labels.shifted(LABELS).tolist() == [[X, X, 5, 6, X, X], [X, 7, 8, X, X, X]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("input", "111001 110000"),
        ("strict-input", "110001 100000"),
        ("output", "001100 011000"),
        ("all", "111111 111100"),
    ],
)
def test_aligned_positions_of_each_setting_leave_padding_out(name, expected):
    real = padding.real_tokens(ATTENTION, LABELS)
    assert positions.aligned(LABELS, labels.shifted(LABELS) != X, real, name).tolist() == masks(expected)


def test_strict_input_and_output_split_the_real_positions_that_are_prompt_or_trained():
    real, supervised = padding.real_tokens(ATTENTION, LABELS), labels.shifted(LABELS) != X
    strict, output = (positions.aligned(LABELS, supervised, real, name) for name in ("strict-input", "output"))
    assert not (strict & output).any()


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(ATTENTION, id="int"),
        pytest.param(ATTENTION.bool(), id="bool"),
        pytest.param(ATTENTION * torch.tensor([[1, 1, 2, 2, 3, 3]]), id="segment numbers"),
        pytest.param((ATTENTION[:, None, :, None] * ATTENTION[:, None, None, :]).bool(), id="4-D bool"),
        pytest.param(
            torch.where((ATTENTION[:, None, :, None] * ATTENTION[:, None, None, :]).bool(), 0.0, -1e9), id="4-D float"
        ),
    ],
)
def test_padding_is_read_from_every_form_of_attention_mask(mask):
    assert padding.real_tokens(mask, LABELS).tolist() == masks("111111 111100")


def test_without_an_attention_mask_every_token_is_real():
    assert padding.real_tokens(None, LABELS).all()


@pytest.mark.parametrize("shape", [(2, 6, 6), (2, 5)])
def test_a_mask_that_does_not_fit_the_labels_is_an_error(shape):
    with pytest.raises(ValueError, match="attention_mask"):
        padding.real_tokens(torch.ones(shape), LABELS)


def test_packed_documents_are_rows_of_their_own():
    ids = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert positions.rows(torch.zeros(2, 6), ids).tolist() == [[0, 0, 0, 1, 1, 2], [3] * 6]
    assert positions.rows(torch.zeros(2, 6), ids[1:]).tolist() == [[0] * 6, [1] * 6]
    assert positions.rows(torch.zeros(2, 6), None).tolist() == [[0] * 6, [1] * 6]


def test_token_weights_give_each_aligned_token_the_same_share_of_the_supervised_ones():
    aligned, supervised = torch.tensor(masks("1110 1100")), torch.tensor(masks("0011 0110"))
    row = torch.tensor([[0] * 4, [1] * 4])
    weights = positions.kl_weights(aligned, supervised, row, "token")
    assert weights.tolist() == [[0.8, 0.8, 0.8, 0], [0.8, 0.8, 0, 0]]


def test_sequence_weights_share_each_rows_supervised_tokens_within_the_row():
    aligned, supervised = torch.tensor(masks("1110 1000")), torch.tensor(masks("0011 0111"))
    row = torch.tensor([[0] * 4, [1] * 4])
    weights = positions.kl_weights(aligned, supervised, row, "sequence")
    assert weights.tolist() == [[2 / 3, 2 / 3, 2 / 3, 0], [3, 0, 0, 0]]


def test_a_selection_lists_aligned_positions_first_and_ends_with_the_last_of_them():
    found = positions.select(LABELS, ATTENTION, None, "strict-input", "token", False)
    assert found.index.tolist() == [0, 1, 5, 6, 2, 3, 7, 8]
    assert found.next_labels.tolist() == [X, X, X, X, 5, 6, 7, 8]
    assert (found.aligned, found.supervised, found.length, found.total) == (4, 4, 6, 6)
    assert found.aligned_only().next_labels.tolist() == [X] * 4


def test_a_batch_without_supervised_tokens_keeps_a_plain_mean_unless_the_trainer_divides():
    prompt = torch.full((1, 4), X)
    assert positions.select(prompt, None, None, "input", "token", False).kl_weight.tolist() == [1, 1, 1, 1]
    assert positions.select(prompt, None, None, "input", "token", True).kl_weight.tolist() == [0, 0, 0, 0]


def test_labels_cut_to_the_last_positions_are_put_back_in_place():
    full = torch.tensor([[X, X, X, 5, 6], [X, X, 7, 8, 9]])
    assert labels.full_labels(full[:, -3:], 3, 5).tolist() == [[X, X, X, 5, 6], [X, X, 7, 8, 9]]


def test_labels_cut_by_a_mask_of_used_logits_are_put_back_in_place():
    """ms-swift, batch of one: keep t where label t + 1 is trained, and the last; the cut labels begin with a spare
    -100.
    """
    full = torch.tensor([[X, X, 5, 6, X, 8, 9]])
    keep = torch.tensor([False, True, True, False, True, True, True])
    cut = torch.tensor([[X, 5, 6, 8, 9]])
    assert labels.full_labels(cut, keep, 7).tolist() == full.tolist()


def test_masks_by_type_of_layer_are_read_by_that_of_full_attention():
    full = (ATTENTION[:, None, :, None] * ATTENTION[:, None, None, :]).bool()
    masks_by_type = {"full_attention": full, "sliding_attention": torch.ones_like(full)}
    assert torch.equal(padding.real_tokens(masks_by_type, LABELS), ATTENTION.bool())
    assert padding.real_tokens({"full_attention": None}, LABELS).all()
    with pytest.raises(ValueError, match="attention_mask must be a tensor, found tuple"):
        padding.real_tokens((full,), LABELS)


def test_a_step_copies_to_the_cpu_once_and_of_a_mask_no_more_than_its_diagonal(monkeypatch):
    copied = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: copied.append(tensor.numel()) or real(tensor))
    full = (ATTENTION[:, None, :, None] * ATTENTION[:, None, None, :]).bool()
    ids = torch.arange(6).expand(2, 6)
    positions.select(LABELS, full, ids, "input", "token", False)
    assert copied == [3 * LABELS.numel()], "labels, the diagonal and the position ids, in one copy"
