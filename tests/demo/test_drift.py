from __future__ import annotations

from math import log

import drift
import pytest
import torch
from drift import Exchange, token_drift
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


def test_a_position_by_hand():
    """Base (1/2, 1/4, 1/4), tuned (1/4, 1/2, 1/4), token 0."""
    reference, tuned = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    kl = 0.5 * log(2) + 0.25 * log(0.5)
    shifted = reference + 3.0, tuned - 1.0  # logits are log-probabilities up to a constant
    assert token_drift(*shifted, torch.tensor([0]))[0].tolist() == pytest.approx([kl, 0, log(2), log(4)], abs=1e-6)


def test_equal_distributions_do_not_drift():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert token_drift(logits, logits, torch.zeros(5, dtype=torch.long))[:, :2].tolist() == [[0, 1]] * 5


@pytest.fixture
def tuned(tiny_model):
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules=["v_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    return model.eval()


EXCHANGES = [
    Exchange([1, 2, 3, 4], [5, 6]),
    Exchange([7], [8, 9, 10]),
    Exchange([3, 3], [4]),
    Exchange([9] * 9, [1] * 4),
]


@torch.no_grad()
def test_batches_and_chunks_give_what_one_sequence_at_a_time_gives(tuned, monkeypatch):
    monkeypatch.setattr(drift, "CHUNK_SIZE", 3)
    measured = dict(drift.measure(tuned, EXCHANGES, batch_size=3))
    assert sorted(measured) == [0, 1, 2, 3]
    for index, one in enumerate(EXCHANGES):
        ids = torch.tensor([one.prompt + one.answer])
        answer = slice(len(one.prompt) - 1, -1)
        with tuned.disable_adapter():
            reference = tuned(ids).logits[0, answer].double().log_softmax(-1)
        logits = tuned(ids).logits[0, answer].double().log_softmax(-1)
        kl = sum((p.exp() * (p - q)).sum().item() for p, q in zip(reference, logits)) / len(one.answer)
        nll = -sum(q[token].item() for q, token in zip(logits, one.answer)) / len(one.answer)
        base_nll = -sum(p[token].item() for p, token in zip(reference, one.answer)) / len(one.answer)
        found = measured[index]
        assert (found.kl, found.base_nll, found.nll) == pytest.approx((kl, base_nll, nll), rel=1e-4)
        assert found.top1 == pytest.approx((reference.argmax(-1) == logits.argmax(-1)).double().mean().item())
        assert found.tokens == len(one.answer)
        assert found.kl > 0


def test_an_untrained_adapter_has_not_drifted(tiny_model):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules=["v_proj"]))
    for _, found in drift.measure(model.eval(), EXCHANGES):
        assert (found.kl, found.top1) == (0, 1)
        assert found.nll == found.base_nll
