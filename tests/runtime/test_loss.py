"""The two implementations of the loss against a float64 oracle, against each other, and against finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from oracle import oracle
from torch import nn

from selfaug import loss

V, H = 23, 8
ROUGH = {torch.float64: 1e-10, torch.float32: 3e-5, torch.bfloat16: 3e-2}


class BiasedHead(nn.Linear):
    """A head that is more than a frozen matrix, so that the module has to be called."""


def problem(P=9, A=6, dtype=torch.float64, head="frozen", seed=0):
    """(hidden, reference hidden, targets, weights, head): the last of the aligned positions are supervised too."""
    torch.manual_seed(seed)
    hidden = torch.randn(P, H, dtype=dtype).requires_grad_()
    reference_hidden = torch.randn(A, H, dtype=dtype)
    targets = torch.randint(0, V, (P,))
    targets[: max(A - 2, 0)] = -100
    weight = torch.rand(A, dtype=torch.float64) + 0.1
    module = nn.Linear(H, V, bias=False) if head in ("frozen", "trained") else BiasedHead(H, V)
    module = module.to(dtype).requires_grad_(head == "trained")
    return hidden, reference_hidden, targets, weight, module


def both(hidden, reference_hidden, targets, weight, head, direction="base-tuned", chunk_size=4, another=False):
    """((terms, gradients) of the plain loss, the same of the chunked one)."""
    wanted = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    # LoRA off leaves a frozen head as it is. One that trains, or another model's, is a head of its own
    other = copy.deepcopy(head).requires_grad_(False)
    reference_head = head if len(wanted) == 1 and not another else other
    if another:
        nn.init.normal_(other.weight)

    plain = loss.plain_loss(head(hidden), other(reference_hidden), targets, weight, direction)
    plain_grads = torch.autograd.grad(plain.total, wanted)
    fast = loss.chunked_loss(hidden, reference_hidden, targets, weight, head, reference_head, chunk_size, direction)
    return (plain, plain_grads), (fast, torch.autograd.grad(fast.total, wanted))


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("direction", ["base-tuned", "tuned-base"])
@pytest.mark.parametrize("implementation", ["plain", "chunked"])
def test_loss_and_gradient_equal_the_float64_oracle(implementation, direction):
    """One row: positions 0-5 are the prompt, of which position 5 is supervised too."""
    torch.manual_seed(0)
    T = 9
    labels = torch.full((1, T), -100)
    labels[0, 6:] = torch.randint(0, V, (3,))
    head = nn.Linear(H, V, bias=False).double().requires_grad_(False)
    hidden = torch.randn(T, H, dtype=torch.float64)
    reference_hidden = torch.randn(6, H, dtype=torch.float64)
    reference = torch.zeros(1, T, V, dtype=torch.float64)
    reference[0, :6] = head(reference_hidden)
    logits = head(hidden).requires_grad_()
    wanted = oracle(
        logits.detach()[None].numpy(), reference.numpy(), labels.numpy(), torch.ones(1, T).numpy(), direction=direction
    )
    targets = torch.cat((labels[0, 1:], torch.tensor([-100])))
    weight = torch.full((6,), 0.5 * 3 / 6, dtype=torch.float64)
    if implementation == "plain":
        terms = loss.plain_loss(logits, reference[0, :6], targets, weight, direction)
        (grad,) = torch.autograd.grad(terms.total / 3, logits)
        expected = torch.from_numpy(wanted.grad[0])
    else:
        hidden.requires_grad_()
        terms = loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, 4, direction)
        (grad,) = torch.autograd.grad(terms.total / 3, hidden)
        expected = torch.from_numpy(wanted.grad[0]) @ head.weight
    assert terms.total.item() / 3 == pytest.approx(wanted.loss, rel=1e-12)
    assert terms.nll_sum.item() / 3 == pytest.approx(wanted.nll, rel=1e-12)
    assert terms.kl_sum.item() / 6 == pytest.approx(wanted.kl, rel=1e-12)
    assert relative(grad, expected) < 1e-12


def test_a_case_worked_out_by_hand():
    """p = (1/2, 1/2), q = (3/4, 1/4): KL(q || p) = 3/4 ln(3/2) + 1/4 ln(1/2); NLL of either token = ln 2."""
    logits = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    terms = loss.plain_loss(logits, reference, torch.tensor([-100, 1]), torch.tensor([0.5], dtype=torch.float64))
    assert terms.kl_sum.item() == pytest.approx(0.13081203594113697, rel=1e-12)
    assert terms.nll_sum.item() == pytest.approx(0.6931471805599453, rel=1e-12)
    assert terms.total.item() == pytest.approx(0.6931471805599453 + 0.5 * 0.13081203594113697, rel=1e-12)
    terms.total.backward()
    assert torch.allclose(logits.grad, torch.tensor([[-0.125, 0.125], [0.5, -0.5]]).double(), rtol=1e-12)


@pytest.mark.parametrize("dtype", list(ROUGH), ids=["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("direction", ["base-tuned", "tuned-base"])
@pytest.mark.parametrize("head", ["frozen", "trained", "biased"])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
@pytest.mark.parametrize("another", [False, True], ids=["", "reference has another head"])
def test_chunked_loss_and_gradients_equal_the_plain_ones(dtype, direction, head, chunk_size, another):
    (plain, plain_grads), (fast, fast_grads) = both(
        *problem(dtype=dtype, head=head), direction=direction, chunk_size=chunk_size, another=another
    )
    assert relative(fast.total, plain.total) < ROUGH[dtype]
    assert relative(fast.nll_sum, plain.nll_sum) < ROUGH[dtype]
    assert relative(fast.kl_sum, plain.kl_sum) < ROUGH[dtype]
    assert len(fast_grads) == (2 if head == "trained" else 1)
    for found, expected in zip(fast_grads, plain_grads):
        assert found.dtype == expected.dtype
        assert relative(found, expected) < ROUGH[dtype]


@pytest.mark.parametrize(("P", "A"), [(5, 0), (5, 5), (1, 1), (0, 0)])
def test_no_aligned_or_no_other_position_is_no_special_case(P, A):
    (plain, plain_grads), (fast, fast_grads) = both(*problem(P=P, A=A))
    assert fast.total.item() == pytest.approx(plain.total.item(), rel=1e-12)
    assert torch.allclose(fast_grads[0], plain_grads[0], rtol=1e-10)
    if A == 0:
        assert fast.kl_sum.item() == 0


def test_an_empty_batch_is_zero_and_still_attached_to_the_graph():
    hidden, reference_hidden, targets, weight, head = problem(P=0, A=0)
    terms = loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, 4)
    assert terms.total.item() == 0
    terms.total.backward()
    assert hidden.grad.shape == (0, H)


def test_hidden_states_that_are_not_contiguous_give_the_same():
    hidden, reference_hidden, targets, weight, head = problem()
    strided = torch.randn(H, 2 * len(hidden), dtype=hidden.dtype).t()[::2].copy_(hidden.detach()).requires_grad_()
    assert not strided.is_contiguous()
    _, (fast, (expected,)) = both(hidden, reference_hidden, targets, weight, head)
    _, (found, (grad,)) = both(strided, reference_hidden.t().contiguous().t(), targets, weight, head)
    assert found.total.item() == pytest.approx(fast.total.item(), rel=1e-13)
    assert torch.allclose(grad, expected, rtol=1e-12)


def test_two_losses_in_one_step_add_their_gradients():
    hidden, reference_hidden, targets, weight, head = problem(head="trained")
    once = loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, 4)
    twice = loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, 2)
    (single,) = torch.autograd.grad(once.total, hidden, retain_graph=True)
    (double,) = torch.autograd.grad(once.total + 2 * twice.total, hidden)
    assert relative(double, 3 * single) < 1e-12


@pytest.mark.parametrize("direction", ["base-tuned", "tuned-base"])
@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_gradcheck_agrees_with_finite_differences(direction, head):
    hidden, reference_hidden, targets, weight, module = problem(P=5, A=3, head=head)
    frozen = module.weight.detach().clone()

    def total(h, w):
        module_of_w = Head(w)
        return loss.chunked_loss(
            h, reference_hidden, targets, weight, module_of_w, lambda r: r @ frozen.t(), 2, direction
        ).total

    assert torch.autograd.gradcheck(total, (hidden, frozen.clone().requires_grad_(head == "trained")))


class Head(nn.Module):
    """A head around a tensor that is not a parameter of its own, as gradcheck needs."""

    def __init__(self, weight):
        super().__init__()
        self.tensor = weight

    def parameters(self, recurse=True):
        return iter((self.tensor,))

    def forward(self, h):
        return h @ self.tensor.t()


def test_float16_gradients_do_not_underflow_before_the_loss_scale_arrives():
    """A token's share of a batch of a million, 1e-6, is far below float16's smallest normal number."""
    hidden, reference_hidden, targets, weight, head = problem(dtype=torch.float32)
    half = [t.detach().half() for t in (hidden, reference_hidden)]
    half[0].requires_grad_()
    terms = loss.chunked_loss(*half, targets, weight, head.half(), head, 4)
    (terms.total * 65536.0 / 1e6).backward()
    head.float()
    single = loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, 4)
    (single.total * 65536.0 / 1e6).backward()
    assert relative(half[0].grad, hidden.grad) < 5e-3


def test_a_frozen_head_keeps_no_gradient():
    hidden, reference_hidden, targets, weight, head = problem()
    loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, 4).total.backward()
    assert head.weight.grad is None


def test_automatic_chunks_fit_the_documented_budget():
    assert loss.auto_chunk_size(151_936, torch.device("cpu")) == 110
    assert loss.auto_chunk_size(151_936, torch.device("cuda")) == 440
    assert loss.auto_chunk_size(10**12, torch.device("cpu")) == 1


@pytest.mark.parametrize("direction", ["base-tuned", "tuned-base"])
def test_a_small_kl_is_not_lost_in_float32(direction):
    """Its parts are a hundred times larger and cancel: what rounds in the normalisers must cancel too."""
    hidden, _, _, weight, head = problem(P=200, A=200)
    reference_hidden = hidden.detach() + 0.03 * torch.randn_like(hidden)
    targets = torch.full((200,), -100)
    weight = torch.ones(200, dtype=torch.float64)
    head.float()
    exact = loss.plain_loss(
        nn.functional.linear(hidden.float(), head.weight).double(),
        nn.functional.linear(reference_hidden.float(), head.weight).double(),
        targets,
        weight,
        direction,
    )
    fast = loss.chunked_loss(hidden.float(), reference_hidden.float(), targets, weight, head, head, 64, direction)
    assert relative(fast.kl_sum, exact.kl_sum) < 3e-5
    assert exact.kl_sum.item() / 200 < 1e-3


def test_a_vocabulary_entry_that_both_models_exclude_is_no_nan_in_an_unsupervised_row():
    hidden, reference_hidden, targets, weight, head = problem(P=4, A=0)
    targets[:] = -100
    head.weight.data[0] = 0
    biased = BiasedHead(H, V).double().requires_grad_(False)
    biased.bias.data[0] = -torch.inf
    terms = loss.chunked_loss(hidden, reference_hidden, targets, weight, biased, biased, 4)
    assert terms.nll_sum.item() == 0


@pytest.mark.parametrize("chunk_size", [2, 3])
def test_blocks_of_rows_within_a_chunk_change_nothing(monkeypatch, chunk_size):
    _, (expected, (expected_grad,)) = both(*problem(), chunk_size=9)
    monkeypatch.setattr(loss, "_CPU_BLOCK", 2 * 4 * V)
    _, (found, (grad,)) = both(*problem(), chunk_size=chunk_size)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-13)
    assert torch.allclose(grad, expected_grad, rtol=1e-12)


def test_a_loss_that_was_backpropagated_holds_nothing_for_another_time():
    hidden, reference_hidden, targets, weight, head = problem()
    total = loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, 4).total
    total.backward()
    with pytest.raises(RuntimeError, match="second time"):
        total.backward()


@pytest.mark.parametrize("chunk_size", [3, 100])
def test_a_label_outside_the_vocabulary_is_an_error_as_in_stock(chunk_size):
    hidden, reference_hidden, targets, weight, head = problem()
    targets[-1] = -1
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, chunk_size)
