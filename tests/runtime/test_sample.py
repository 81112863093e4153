"""The KL at a sample of the aligned positions: right on average, repeatable, the same when recomputed."""

from __future__ import annotations

import pytest
import torch
from tiny import base, batch, settings, taken_gradients, with_lora

from selfaug import config, positions, sample
from selfaug.trainers import metrics


def select(labels, share, seed=0, reduction="token", divided_by_batch=False, mask=None):
    whole = positions.select(labels, mask, None, "input", reduction, divided_by_batch)
    return whole if share == 1 else sample.sampled(whole, share, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reduction", ["token", "sequence"])
def test_every_position_has_on_average_the_weight_that_it_has_without_sampling(reduction):
    labels = batch(padding=None)["labels"]
    whole = select(labels, 1.0, reduction=reduction)
    found = torch.zeros(labels.numel(), dtype=torch.double)
    draws = 1000
    for seed in range(draws):
        chosen = select(labels, 0.25, seed, reduction)
        found[chosen.index[: chosen.aligned]] += chosen.kl_weight / draws
    expected = torch.zeros_like(found).index_add(0, whole.index[: whole.aligned], whole.kl_weight)
    assert torch.allclose(found[expected > 0] / expected[expected > 0], torch.tensor(1.0).double(), atol=0.3)
    assert found[expected == 0].sum() == 0


@pytest.mark.parametrize(
    ("count", "share", "k"), [(100, 0.25, 25), (3, 0.01, 1), (7, 0.5, 4), (1, 1.0, 1), (0, 0.5, 0)]
)
def test_the_sample_has_the_size_that_was_asked_for_and_is_never_empty(count, share, k):
    found = sample.positions(count, share, torch.Generator().manual_seed(1))
    assert len(found) == k
    assert found.tolist() == sorted(set(found.tolist()))


def test_supervised_positions_all_stay_also_one_that_is_aligned_and_not_sampled():
    labels = batch(padding=None)["labels"]
    whole = select(labels, 1.0)
    for seed in range(20):
        chosen = select(labels, 0.1, seed)
        trained = chosen.index[chosen.next_labels != -100]
        assert sorted(trained.tolist()) == sorted(whole.index[whole.next_labels != -100].tolist())
        assert chosen.supervised == whole.supervised
        assert len(chosen.index) == len(set(chosen.index.tolist()))


def test_the_mean_of_a_batch_without_supervised_tokens_is_over_the_whole_of_it():
    labels = torch.full((2, 8), -100)
    whole, chosen = select(labels, 1.0), select(labels, 0.25)
    assert chosen.counted == whole.counted == 16
    assert chosen.kl_weight.sum().item() == pytest.approx(whole.kl_weight.sum().item())


def step(model, data, seed, **extra):
    torch.manual_seed(seed)
    metrics.RUNNING.clear()
    model(**data, **extra).loss.backward()
    return taken_gradients(model)


def test_a_seed_repeats_a_step_and_the_next_step_draws_other_positions():
    model, data = with_lora(base()), batch()
    with settings(selfaug_sample="0.3"):
        first, again, other = (step(model, data, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    torch.manual_seed(1)
    draws = [sample.positions(1000, 0.1, sample.step_generator()).tolist() for _ in range(2)]
    assert draws[0] != draws[1]


def test_the_gradient_is_right_on_average():
    model, data = with_lora(base()), batch()
    whole = step(model, data, 0)
    mean = {name: torch.zeros_like(g) for name, g in whole.items()}
    with settings(selfaug_sample="0.5"):
        for seed in range(60):
            for name, g in step(model, data, seed).items():
                mean[name] += g / 60
    error = sum((mean[n] - whole[n]).norm() ** 2 for n in whole) ** 0.5
    assert error / sum(g.norm() ** 2 for g in whole.values()) ** 0.5 < 0.15


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_recomputed_as_a_whole_sees_the_same_positions(reentrant):
    model, data = with_lora(base()), batch()
    embeds = model.get_input_embeddings()(data["input_ids"]).detach().requires_grad_()
    data = {"labels": data["labels"], "attention_mask": data["attention_mask"]}
    with settings(selfaug_sample="0.3"):
        torch.manual_seed(3)
        model(inputs_embeds=embeds, **data).loss.backward()
        expected = taken_gradients(model)
        torch.manual_seed(3)
        loss = torch.utils.checkpoint.checkpoint(
            lambda x: model(inputs_embeds=x, **data).loss, embeds, use_reentrant=reentrant
        )
        loss.backward()
    found = taken_gradients(model)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-5, atol=1e-9) for name in expected)


def test_without_sampling_and_in_evaluation_the_random_state_is_left_alone():
    model, data = with_lora(base()), batch()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    model(**data)
    with settings(selfaug_sample="0.3", selfaug_eval="1"):
        model.eval()
        model(**data)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("value", ["0", "1.5", "-0.1", "nan", "some"])
def test_a_share_outside_0_to_1_is_refused(value):
    with pytest.raises(config.SettingError, match=r"SELFAUG_SAMPLE must be a number > 0 and <= 1"):
        config.read(None, {"SELFAUG_SAMPLE": value})


def test_chances_by_score_sum_to_the_size_and_no_chance_is_above_1_or_0():
    scores = torch.tensor([0.0, 1, 2, 100, 3, 0, 50, 1]).double()
    for k in range(1, 9):
        chance = sample.chances(scores, k)
        assert chance.sum().item() == pytest.approx(k)
        assert chance.min() > 0
        assert chance.max() <= 1
    assert sample.chances(scores, 1)[3] > sample.chances(scores, 1)[2] > sample.chances(scores, 1)[0]


@pytest.mark.parametrize(
    "scores", [torch.zeros(5), torch.tensor([1.0, float("nan"), 1, 1, 1]), torch.full((5,), torch.inf)]
)
def test_without_usable_scores_all_chances_are_equal(scores):
    assert torch.allclose(sample.chances(scores.double(), 2), torch.full((5,), 0.4).double())


class _At:
    """Stands for ``torch.rand`` at one place of the unit interval."""

    def __init__(self, place):
        self.place = place

    def __call__(self, *_, **__):
        return torch.tensor(self.place, dtype=torch.double)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_over_all_places_of_the_draw_the_weighted_sum_is_exactly_that_of_all_positions(share, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(20, generator=generator, dtype=torch.double) ** 4
    values = torch.rand(20, generator=generator, dtype=torch.double)
    k = max(1, round(share * 20))
    # the drawn positions change only where a place passes the fractional part of a summed chance; edges that rounding
    # alone parts are one
    parts = (sample.chances(scores, k).cumsum(0) % 1).mul(1e12).round().div(1e12)
    edges = torch.cat((torch.tensor([0.0, 1.0]).double(), parts)).unique()
    mean = 0.0
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist()):
        monkeypatch.setattr(torch, "rand", _At((low + high) / 2))
        drawn, chance = sample.by_score(scores, share, generator)
        assert len(drawn) == k
        mean += (high - low) * (values[drawn] / chance).sum().item()
    assert mean == pytest.approx(values.sum().item(), rel=1e-9)


def test_the_gradient_and_the_logged_kl_by_shift_are_right_on_average():
    model, data = with_lora(base()), batch()
    whole = step(model, data, 0)
    kl = metrics.RUNNING.take()["selfaug/kl"]
    mean, mean_kl = {name: torch.zeros_like(g) for name, g in whole.items()}, 0.0
    with settings(selfaug_sample="0.5", selfaug_sample_by="shift"):
        for seed in range(60):
            for name, g in step(model, data, seed).items():
                mean[name] += g / 60
            mean_kl += metrics.RUNNING.take()["selfaug/kl"] / 60
    error = sum((mean[n] - whole[n]).norm() ** 2 for n in whole) ** 0.5
    assert error / sum(g.norm() ** 2 for g in whole.values()) ** 0.5 < 0.15
    assert mean_kl == pytest.approx(kl, rel=0.15)


def test_a_seed_repeats_a_step_by_shift_also_when_the_states_come_from_a_cache(tmp_path):
    model, data = with_lora(base()), batch()
    with settings(selfaug_sample="0.3", selfaug_sample_by="shift"):
        first, again, other = (step(model, data, seed) for seed in (1, 1, 2))
        with settings(selfaug_cache=str(tmp_path)):
            cached = [step(model, data, 1) for _ in range(2)]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    for found in cached:
        assert all((first[name] - found[name]).norm() <= 1e-4 * first[name].norm() for name in first)
