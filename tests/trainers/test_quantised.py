"""A base that bitsandbytes has quantised (its CPU backend): the reference is that base, LoRA off, and the gradients are
autograd's. Skipped without bitsandbytes, which `nox -s stacks` has.
"""

from __future__ import annotations

import pytest
import torch
from tiny import base, batch, expected, taken_gradients, with_lora, worst_error

bnb = pytest.importorskip("bitsandbytes")


def quantised(kind):
    model = base(hidden_size=64, intermediate_size=128)
    for module in list(model.model.modules()):
        for name, child in list(module.named_children()):
            if not isinstance(child, torch.nn.Linear):
                continue
            options = {"bias": child.bias is not None}
            if kind == "4-bit":
                made = bnb.nn.Linear4bit(child.in_features, child.out_features, quant_type="nf4", **options)
                made.weight = bnb.nn.Params4bit(child.weight.data.clone(), requires_grad=False, quant_type="nf4")
            else:
                made = bnb.nn.Linear8bitLt(child.in_features, child.out_features, has_fp16_weights=False, **options)
                made.weight = bnb.nn.Int8Params(child.weight.data.clone(), requires_grad=False, has_fp16_weights=False)
            if child.bias is not None:
                made.bias = child.bias
            setattr(module, name, made.to("cpu"))
    setattr(model, f"is_loaded_in_{kind.replace('-', '')}", True)
    return model


@pytest.mark.parametrize("kind", ["4-bit", "8-bit"])
def test_a_quantised_base_gives_autograds_gradients(kind, record_property):
    model, data = with_lora(quantised(kind)), batch()
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert "bnb" in type(layer).__module__
    output = model(**data)
    output.loss.backward()
    found = output.loss.item(), taken_gradients(model)
    answer, wanted = expected(model, data)
    assert answer.kl > 1e-4
    assert found[0] == pytest.approx(answer.loss, rel=1e-4)
    error = worst_error(found[1], wanted)
    record_property("told", f"bitsandbytes {bnb.__version__}, {kind}: KL {answer.kl:.5f}, gradient error {error:.1e}")
    assert error < 1e-3
