"""The reference from disk is that of the weights as they are: at the start of each run, and where a write shows."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import base, expected, longer, perturb, settings, taken_gradients, with_lora, worst_error
from transformers import Trainer, TrainingArguments

from selfaug import config, reference_cache
from selfaug.reference import cache
from selfaug.reference.cache import CacheError
from selfaug.trainers import metrics

ROUNDED = 5e-3  # float32 states are float16 on disk


def sharp(**options):
    """A model whose logits are of some nats, so that the KL shows where a state is another."""
    model = base(**options)
    model.lm_head.weight.data *= 50
    return model


def lists(data):
    return [{name: value[row].tolist() for name, value in data.items()} for row in range(len(data["labels"]))]


def run(model, folder, out, **options):
    """The KL at each step of one run of the HF Trainer."""
    options = {"learning_rate": 0.0, "max_steps": 2, "per_device_train_batch_size": 3, "logging_steps": 1, **options}
    options.update(report_to=[], use_cpu=True, save_strategy="no", label_names=["labels"])
    data = longer(padding=None)
    rows = [{name: value[row] for name, value in data.items()} for row in range(3)]
    with settings(selfaug_cache=folder):
        trainer = Trainer(model, TrainingArguments(out, **options), train_dataset=rows)
        trainer.train()
    return [log["selfaug/kl"] for log in trainer.state.log_history if "selfaug/kl" in log]


def step(model, data, folder):
    """(KL, gradients) of one step outside of a Trainer."""
    metrics.RUNNING.clear()
    with settings(selfaug_cache=folder):
        model(**data).loss.backward()
    return metrics.RUNNING.take()["selfaug/kl"], taken_gradients(model)


def logits(model, data):
    with torch.no_grad():
        return model.eval()(input_ids=data["input_ids"], attention_mask=data.get("attention_mask")).logits


def added(weight):
    weight.data += 0.2 * torch.sin(torch.arange(weight.numel()).view_as(weight))


def replaced(weight):
    weight.data = weight.data + 0.2 * torch.sin(torch.arange(weight.numel()).view_as(weight))


def under_no_grad(weight):
    with torch.no_grad():
        weight += 0.2 * torch.sin(torch.arange(weight.numel()).view_as(weight))


def gate(model):
    """A base weight of a model with or without LoRA."""
    layer = model.get_base_model().model.layers[0] if hasattr(model, "get_base_model") else model.model.layers[0]
    return getattr(layer.mlp.gate_proj, "base_layer", layer.mlp.gate_proj).weight


@pytest.mark.parametrize("write", [added, replaced, under_no_grad], ids=lambda write: write.__name__)
def test_a_second_run_is_held_to_the_weights_that_it_starts_from(tmp_path, write):
    """With LoRA untrained the KL is 0."""
    model = with_lora(sharp(), perturbed=False)
    for _ in range(2):
        assert max(map(abs, run(model, tmp_path / "cache", tmp_path))) < 1e-5
        write(gate(model))
    assert max(map(abs, run(model, tmp_path / "cache", tmp_path))) < 1e-5


def test_a_second_run_in_another_dtype_is_held_to_the_weights_in_that_dtype(tmp_path):
    model = with_lora(sharp(), perturbed=False, autocast_adapter_dtype=False)
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        model.to(dtype)
        assert max(map(abs, run(model, tmp_path / "cache", tmp_path))) < 1e-5


@pytest.mark.parametrize("write", [replaced, under_no_grad], ids=lambda write: write.__name__)
def test_a_write_that_shows_is_noticed_at_the_next_step(tmp_path, write):
    data, origin = longer(), sharp()
    model = with_lora(copy.deepcopy(origin))
    step(model, data, tmp_path)
    for changed in (origin, model):
        write(gate(changed))
    wanted, gradients = expected(model, data, reference=logits(origin, data))
    for _ in range(2):
        kl, found = step(model, data, tmp_path)
        assert kl == pytest.approx(wanted.kl, rel=2e-3)
        assert worst_error(found, gradients) < ROUNDED


@pytest.mark.skipif(not hasattr(base().model, "rotary_emb"), reason="this release keeps its frequencies elsewhere")
def test_rotary_frequencies_that_are_written_to_are_noticed_at_the_next_step(tmp_path):
    data, origin = longer(), sharp()
    for layer in origin.model.layers:
        layer.self_attn.q_proj.weight.data *= 500  # distances matter
    model = with_lora(copy.deepcopy(origin))
    step(model, data, tmp_path)
    for changed in (origin, model.get_base_model()):
        changed.model.rotary_emb.inv_freq.mul_(3)
    wanted, _ = expected(model, data, reference=logits(origin, data))
    assert step(model, data, tmp_path)[0] == pytest.approx(wanted.kl, rel=2e-3)


def after_an_evaluation_a_step_is_held_to(origin, model, data, folder):
    model.eval()
    model.train()
    wanted, gradients = expected(model, data, reference=logits(origin, data))
    kl, found = step(model, data, folder)
    assert kl == pytest.approx(wanted.kl, rel=2e-3)
    assert worst_error(found, gradients) < ROUNDED


def test_a_write_that_does_not_show_is_noticed_when_the_model_comes_back_from_evaluation(tmp_path):
    """In a loop without a Trainer, of which all steps are one run."""
    data, origin = longer(), sharp()
    model = with_lora(copy.deepcopy(origin))
    step(model, data, tmp_path)
    for changed in (origin, model):
        added(gate(changed))
    after_an_evaluation_a_step_is_held_to(origin, model, data, tmp_path)


def test_weights_that_are_hashed_again_and_are_the_same_keep_what_is_known_of_their_folder(tmp_path):
    """An entry that this run has used must not become one that may be evicted."""
    model, given = with_lora(base()), config.read(None, {"SELFAUG_CACHE": str(tmp_path)})
    inner = model.get_base_model()
    folder = cache.own_folder(inner, given)
    replaced_by_the_same = gate(model)
    replaced_by_the_same.data = replaced_by_the_same.data.clone()
    assert cache.own_folder(inner, given) is folder
    model.eval()
    model.train()
    assert cache.own_folder(inner, given) is folder
    replaced(gate(model))
    assert cache.own_folder(inner, given) is not folder


def test_the_weights_are_hashed_once_in_a_run(tmp_path, monkeypatch):
    hashed, real = [], cache.fingerprint
    monkeypatch.setattr(cache, "fingerprint", lambda model: hashed.append(1) or real(model))
    model = with_lora(base())
    for runs in (1, 2):
        run(model, tmp_path / "cache", tmp_path, max_steps=4, learning_rate=1e-2)
        assert len(hashed) == runs


def built(model, folder):
    """The folder of ``model`` in a cache that was built of it."""
    given = config.read(None, {"SELFAUG_CACHE": str(folder)})
    before = copy.deepcopy(model)
    reference_cache.build(before, lists(longer(padding=None)), given)
    return cache.own_folder(before, given).path


def test_a_second_stage_of_full_fine_tuning_is_not_held_to_the_base_of_the_first(tmp_path):
    model, folder = sharp().train(), tmp_path / "cache"
    first = built(model, folder)
    kl = run(model, folder, tmp_path, learning_rate=1e-2, max_steps=3)
    assert abs(kl[0]) < 1e-5 < kl[2]  # within a run the reference stays, though the weights move
    with pytest.raises(CacheError, match="has no states of these weights") as error:
        run(model, folder, tmp_path)
    assert f"set SELFAUG_CACHE={first} to align to that model" in str(error.value)
    assert run(model, first, tmp_path)[0] == pytest.approx(kl[2], rel=3)  # that folder names its model
    assert run(model, first, tmp_path)[0] > 1e-3
    built(model, folder)
    assert max(map(abs, run(model, folder, tmp_path))) < 1e-5


def test_a_loop_without_a_trainer_is_one_run_whatever_evaluations_are_in_it(tmp_path):
    data, origin = longer(padding=None), sharp()
    model = copy.deepcopy(origin).train()
    built(model, tmp_path)
    step(model, data, tmp_path)
    for _ in range(2):
        perturb(model, 0.02)
        after_an_evaluation_a_step_is_held_to(origin, model, data, tmp_path)


@pytest.mark.parametrize("held_out", ["built", "not built"])
def test_an_evaluation_of_full_fine_tuning_has_the_term_where_the_user_asks_for_it(tmp_path, held_out):
    """SELFAUG_EVAL=1, in a Trainer, when the weights have moved."""
    model, folder = sharp().train(), tmp_path / "cache"
    origin, data, other = copy.deepcopy(model), longer(padding=None), longer(padding=None, seed=3)
    built(model, folder)
    if held_out == "built":
        given = config.read(None, {"SELFAUG_CACHE": str(folder)})
        reference_cache.build(copy.deepcopy(origin), lists(other), given)
    rows = [[{name: value[row] for name, value in one.items()} for row in range(3)] for one in (data, other)]
    options = {"learning_rate": 1e-2, "max_steps": 3, "per_device_train_batch_size": 3, "save_strategy": "no"}
    options.update(per_device_eval_batch_size=3, report_to=[], use_cpu=True, label_names=["labels"])
    arguments = TrainingArguments(tmp_path, **options)
    trainer = Trainer(model, arguments, train_dataset=rows[0], eval_dataset=rows[1])
    with settings(selfaug_cache=folder, selfaug_eval="1", selfaug_alpha="1"):
        trainer.train()
        if held_out == "not built":
            with pytest.raises(
                CacheError, match=r"3 of the 3 samples .*This is an evaluation \(SELFAUG_EVAL=1\).*rows"
            ):
                trainer.evaluate()
            return
        with_term = trainer.evaluate()["eval_loss"]
        model.eval()
        with torch.no_grad():
            assert model(**other).loss.item() == pytest.approx(with_term, rel=1e-3)  # outside of the Trainer, too
    stock = trainer.evaluate()["eval_loss"]
    aligned = other["labels"] == -100
    log_q, log_p = (logits(one, other).double().log_softmax(-1) for one in (origin, model))
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)[aligned].mean().item()
    assert kl > 1e-2
    assert with_term - stock == pytest.approx(kl, rel=1e-2)


def test_an_evaluation_before_the_first_step_has_the_term_of_full_fine_tuning_too(tmp_path):
    model, data = sharp().eval(), longer(padding=None)
    built(model, tmp_path)
    with settings(selfaug_cache=tmp_path, selfaug_eval="1"), torch.no_grad():
        model(**data)
        data["input_ids"][0, 0] += 1
        with pytest.raises(CacheError, match="1 of the 3 samples"):
            model(**data)
        model.requires_grad_(False)
        model(**data)  # it does not train, so it has no reference


def test_an_evaluation_of_lora_is_computed_and_not_cached(tmp_path):
    data, origin = longer(), sharp()
    model = with_lora(copy.deepcopy(origin)).eval()
    wanted, _ = expected(model, data, reference=logits(origin, data))
    with settings(selfaug_cache=tmp_path, selfaug_eval="1"), torch.no_grad():
        assert model(**data).loss.item() == pytest.approx(wanted.loss, rel=1e-4)
    assert not list(tmp_path.iterdir())
