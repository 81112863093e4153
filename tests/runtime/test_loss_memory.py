"""The loss's own memory: a few chunks of logits and tensors of (T, H), never T x V; asserted on what is allocated."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from selfaug import loss

V, H, CHUNK = 4096, 8, 16


def peak(P: int, A: int, dtype: torch.dtype) -> int:
    """Bytes alive at once during loss and backward, above the inputs, by torch's profiler."""
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=False).to(dtype).requires_grad_(False)
    hidden = torch.randn(P, H).to(dtype).requires_grad_()
    reference_hidden = torch.randn(A, H).to(dtype)
    targets, weight = torch.randint(0, V, (P,)), torch.rand(A, dtype=torch.double)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss.chunked_loss(hidden, reference_hidden, targets, weight, head, head, CHUNK).total.backward()
    now = most = 0
    for event in sorted(record.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_grows_by_hidden_states_only(monkeypatch, dtype):
    monkeypatch.setattr(loss, "_CPU_BLOCK", 4 * V)
    short, long = peak(128, 96, dtype), peak(1024, 768, dtype)
    assert long - short < (1024 - 128) * (8 * H + 64) * 4  # eight tensors of (P, H), or columns of a few numbers
    assert long < 1024 * V * dtype.itemsize / 4, "a quarter of one tensor of full logits"


def test_a_chunk_takes_one_buffer_for_both_logits_and_little_beside(monkeypatch):
    monkeypatch.setattr(loss, "_CPU_BLOCK", 4 * V)
    both = 2 * CHUNK * V * 4
    assert peak(128, 96, torch.float32) < 1.25 * both
