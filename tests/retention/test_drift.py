from __future__ import annotations

from math import log

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from selfaug.retention import drift
from selfaug.retention.drift import BASE_NLL, KL, NLL, REVERSE_KL, TOP1, Stretch, token_drift


def test_a_position_by_hand():
    """Base (1/2, 1/4, 1/4), tuned (1/4, 1/2, 1/4), token 0."""
    reference, tuned = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    kl = 0.5 * log(2) + 0.25 * log(0.5)
    shifted = reference + 3.0, tuned - 1.0  # logits are log-probabilities up to a constant
    assert token_drift(*shifted, torch.tensor([0]))[0].tolist() == pytest.approx([kl, kl, 0, log(2), log(4)], abs=1e-6)


def test_the_two_directions_differ_and_are_told_apart():
    """Base (3/4, 1/4), tuned (1/4, 3/4) in one place and (1/2, 1/2) in the other."""
    reference = torch.tensor([[0.75, 0.25]]).log()
    tuned = torch.tensor([[0.5, 0.5]]).log()
    found = token_drift(reference, tuned, torch.tensor([0]))[0]
    assert found[KL].item() == pytest.approx(0.75 * log(1.5) + 0.25 * log(0.5), abs=1e-6)
    assert found[REVERSE_KL].item() == pytest.approx(0.5 * log(0.5 / 0.75) + 0.5 * log(2), abs=1e-6)


def test_equal_distributions_do_not_drift():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert token_drift(logits, logits, torch.zeros(5, dtype=torch.long))[:, :3].tolist() == [[0, 0, 1]] * 5


@pytest.fixture
def tuned(tiny_model, adapters):
    from peft import PeftModel

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapters["far"]).eval()


EXCHANGES = [([1, 2, 3, 4], [5, 6]), ([7], [8, 9, 10]), ([3, 3], [4]), ([9] * 9, [1] * 4)]


def every_position(model, ids):
    """The figures of all positions but the last, one at a time, in double precision."""
    ids = torch.tensor([ids])
    with torch.no_grad(), model.disable_adapter():
        reference = model(ids).logits[0].double().log_softmax(-1)
    with torch.no_grad():
        logits = model(ids).logits[0].double().log_softmax(-1)
    rows = []
    for at in range(ids.shape[1]):
        p, q = reference[at], logits[at]
        token = ids[0, at + 1] if at + 1 < ids.shape[1] else 0
        kl = sum(p[v].exp() * (p[v] - q[v]) for v in range(len(p)))
        reverse = sum(q[v].exp() * (q[v] - p[v]) for v in range(len(p)))
        rows.append([kl, reverse, float(p.argmax() == q.argmax()), -p[token], -q[token]])
    return torch.tensor(rows)


def test_batches_and_chunks_give_what_a_loop_over_positions_gives_in_double_precision(tuned, monkeypatch):
    monkeypatch.setattr(drift, "CHUNK_SIZE", 3)
    stretches = [Stretch.of_answer(*pair) for pair in EXCHANGES]
    measured = dict(drift.measure(tuned, stretches, batch_size=3))
    assert sorted(measured) == [0, 1, 2, 3]
    for index, (prompt, answer) in enumerate(EXCHANGES):
        expected = every_position(tuned, prompt + answer)[len(prompt) - 1 : -1]
        assert len(measured[index]) == len(answer)
        torch.testing.assert_close(measured[index], expected.float(), rtol=1e-4, atol=1e-6)
        assert (measured[index][:, [KL, REVERSE_KL]] > 0).all()


def test_the_input_is_every_position_of_the_prompt_also_the_one_that_predicts_the_answer(tuned):
    prompts = [prompt for prompt, _ in EXCHANGES]
    measured = dict(drift.measure(tuned, [Stretch.of_input(prompt) for prompt in prompts], batch_size=4))
    for index, prompt in enumerate(prompts):
        expected = every_position(tuned, prompt)
        torch.testing.assert_close(measured[index][:, :3], expected[:, :3].float(), rtol=1e-4, atol=1e-6)


def test_an_untrained_adapter_has_not_drifted(tiny_model):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(target_modules=["v_proj"]))
    for _, found in drift.measure(model.eval(), [Stretch.of_answer(*pair) for pair in EXCHANGES]):
        assert (found[:, KL] == 0).all()
        assert (found[:, TOP1] == 1).all()
        assert (found[:, NLL] == found[:, BASE_NLL]).all()
