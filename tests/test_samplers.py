"""Code/benchmarks/samplers.py on a tiny model: its errors are those that many real draws have."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import perturb

from selfaug.benchmarks import samplers

ROW = {"input_ids": [5, 6, 7, 8, 9, 10, 11, 12], "labels": [-100, -100, -100, -100, -100, -100, 11, 12]}


@pytest.fixture
def trained(tiny_model, tmp_path):
    """An adapter with some KL, and rows."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(task_type="CAUSAL_LM"))
    perturb(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    (tmp_path / "rows.jsonl").write_text(2 * (json.dumps(ROW) + "\n"))
    return tiny_model, tmp_path / "adapter", tmp_path / "rows.jsonl"


def test_a_smaller_share_has_a_larger_error_and_every_sampler_is_there(trained):
    found = samplers.table(*trained, rows=2)
    assert found["positions"] == 12
    assert set(found["errors"]["1/4"]) == {"uniform", "shift", "shift of the logits", "gradient's norm"}
    quarter, eighth = (found["errors"][share]["uniform"] for share in ("1/4", "1/8"))
    assert 0 < quarter["gradient"] < eighth["gradient"]
    assert 0 < quarter["kl"] < eighth["kl"]


def test_the_error_of_a_uniform_sample_is_that_of_the_textbook():
    """Drawn without replacement, k of A (Cochran, Sampling Techniques, theorem 2.2), for each coordinate."""
    gradients = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double) + 1
    kl = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    error = samplers._errors(torch.ones(40, dtype=torch.double), 0.25, gradients @ gradients.T, kl)
    variance = 40**2 * (1 - 0.25) / 10 * gradients.var(0).sum()
    assert error["gradient"] == pytest.approx(float(variance.sqrt() / gradients.sum(0).norm()), rel=0.05)
    assert error["kl"] == pytest.approx(float((40**2 * 0.75 / 10 * kl.var()).sqrt() / kl.sum()), rel=0.05)


def test_the_error_of_a_draw_is_that_of_the_summed_gradients():
    """Two positions with gradients at a right angle, one of which is drawn: the error is that of (2, 0) for (1, 1)."""
    error = samplers._errors(torch.ones(2, dtype=torch.double), 0.5, torch.eye(2).double(), torch.ones(2).double())
    assert error["gradient"] == pytest.approx(1.0)
    assert error["kl"] == pytest.approx(0.0)
