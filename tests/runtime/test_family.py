"""What differs from one family to another is asked of the model: when, where, and at what cost."""

from __future__ import annotations

import gc

import pytest

pytest.importorskip("transformers.models.gemma2", reason="this transformers has no Gemma 2")
hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")

from transformers.models.gemma2 import modeling_gemma2  # noqa: E402
from transformers.models.mixtral import modeling_mixtral  # noqa: E402

from selfaug.hooks import SelfAligned  # noqa: E402
from selfaug.trial import exact, tiny  # noqa: E402

ALPHA = "0.5"


def patched(cls):
    """The class as the seam makes it, also in a release for which the family is not pinned."""
    if hasattr(cls, "selfaug_aligned"):
        return cls
    return type(cls.__name__, (SelfAligned, cls), {"__module__": cls.__module__, "forward": cls.forward})


Gemma2ForCausalLM = patched(modeling_gemma2.Gemma2ForCausalLM)
MixtralForCausalLM = patched(modeling_mixtral.MixtralForCausalLM)


def loss(tuned) -> float:
    with tiny.settings(SELFAUG_ALPHA=ALPHA):
        return float(tuned(**tiny.batch()).loss.detach())


def wanted(base, tuned) -> float:
    """Stock's own loss and the KL from full logits, against a model that never had LoRA."""
    with tiny.settings(SELFAUG="0"):
        stock = float(tuned(**tiny.batch()).loss.detach())
        term, _ = exact._kl_term(base, tuned, exact.Case("", tiny.batch()))
    return stock + float(term.detach())


def test_a_router_loss_that_is_switched_on_between_two_steps_is_in_the_second_one():
    base = tiny.base(MixtralForCausalLM)
    tuned = tiny.with_lora(base)
    without = loss(tuned)
    for model in (base, tuned.get_base_model()):
        model.config.output_router_logits = True
        model.router_aux_loss_coef = 1.0
    assert wanted(base, tuned) > without + 1
    assert loss(tuned) == pytest.approx(wanted(base, tuned), rel=1e-5)


def test_a_soft_cap_that_is_set_between_two_steps_is_in_the_second_one():
    base = tiny.base(Gemma2ForCausalLM)
    base.config.final_logit_softcapping = None
    tuned = tiny.with_lora(base)
    loss(tuned)
    for model in (base, tuned.get_base_model()):
        model.config.final_logit_softcapping = 20.0
    assert loss(tuned) == pytest.approx(wanted(base, tuned), rel=1e-5)


@pytest.mark.parametrize("cls", [Gemma2ForCausalLM, MixtralForCausalLM])
def test_a_model_whose_embedding_is_offloaded_has_the_loss_of_its_family(cls):
    base = tiny.base(cls)
    base.config.output_router_logits = True
    tuned = tiny.with_lora(base)
    expected = wanted(base, tuned)
    embedding = tuned.get_base_model().get_input_embeddings()
    weights = {"weight": embedding.weight.detach().clone()}
    offload = hooks.AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights)
    hooks.add_hook_to_module(embedding, offload)
    assert tuned.get_base_model().device.type == "meta"
    assert loss(tuned) == pytest.approx(expected, rel=1e-5)


def test_the_head_of_a_family_does_not_search_the_process_at_each_chunk(monkeypatch):
    tuned = tiny.with_lora(tiny.base(Gemma2ForCausalLM))
    loss(tuned)  # the first step looks for the modules around the model
    searches = []
    every = gc.get_objects
    monkeypatch.setattr(gc, "get_objects", lambda *args: searches.append(1) or every(*args))
    loss(tuned)
    assert not searches


@pytest.mark.parametrize("name", ["granite", "granitemoe", "gemma2", "gemma3", "cohere"])
def test_the_trial_sees_a_head_that_leaves_out_what_the_family_does_with_logits(name, monkeypatch):
    module = pytest.importorskip(f"transformers.models.{name}.modeling_{name}")
    classes = {"granitemoe": "GraniteMoeForCausalLM"}
    base = tiny.base(patched(getattr(module, classes.get(name, f"{name.capitalize()}ForCausalLM"))))
    case = next(case for case in exact.cases(base) if case.name == "padded right")
    assert exact._check("", "", base, case).ok
    monkeypatch.setattr("selfaug.step.family.head_of", lambda model: model.get_output_embeddings())
    monkeypatch.setattr("selfaug.reference.lora_off.head_of", lambda model: model.get_output_embeddings())
    assert not exact._check("", "", base, case).ok
