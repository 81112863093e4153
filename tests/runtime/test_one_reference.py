"""States and head of the reference are one model's, whatever the cache holds and whatever became of the weights."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import ALL_LINEAR, V, base, batch, expected, settings, taken_gradients, with_lora, worst_error

from selfaug import config, head, reference_cache
from selfaug.reference import cache, reference_of
from selfaug.reference.cache import CacheError
from selfaug.trainers import metrics

ROUNDED = 5e-3  # float32 states are float16 on disk


def logits(model, data):
    """Of a model without LoRA, in eval mode."""
    with torch.no_grad():
        return model.eval()(input_ids=data["input_ids"], attention_mask=data.get("attention_mask")).logits


def rows(data):
    for row in range(len(data["input_ids"])):
        real = data.get("attention_mask", torch.ones_like(data["labels"]))[row].bool()
        yield {name: data[name][row][real].tolist() for name in ("input_ids", "labels")}


def build(model, data, folder):
    """The folder of ``model`` in a cache that was built from ``data``."""
    given = config.read(None, {"SELFAUG_CACHE": str(folder)})
    reference_cache.build(copy.deepcopy(model), rows(data), given)
    return cache.own_folder(model, given).path


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def step(model, data, **variables):
    """(loss, gradients)."""
    metrics.RUNNING.clear()
    with settings(**variables):
        loss = model(**data).loss
        loss.backward()
    return loss.detach(), taken_gradients(model)


def trained(seed=0, **options):
    """A model that has moved away from ``base(seed)``, as a checkpoint of a full fine-tuning has."""
    model = base(seed, **options)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.train()


@pytest.mark.parametrize("kind", ["another model", "the same model further trained"])
def test_lora_is_not_aligned_to_the_states_of_another_model(tmp_path, kind):
    data = batch()
    folder = build(base(), data, tmp_path)
    before = content(tmp_path)
    other = base(seed=3) if kind == "another model" else trained()
    with pytest.raises(CacheError, match="is the folder of another model, Qwen2ForCausalLM") as error:
        step(with_lora(other), data, selfaug_cache=folder)
    assert f"Name the folder above it, {tmp_path}," in str(error.value)
    assert content(tmp_path) == before


def test_lora_may_name_the_folder_of_its_own_model(tmp_path):
    data, origin = batch(), base()
    folder = build(origin, data, tmp_path).rename(tmp_path / "renamed")
    model = with_lora(copy.deepcopy(origin))
    answer, gradients = expected(model, data, reference=logits(origin, data))
    before = content(folder)
    loss, found = step(model, data, selfaug_cache=folder)
    assert loss.item() == pytest.approx(answer.loss, rel=1e-4)
    assert worst_error(found, gradients) < ROUNDED
    assert content(folder) == before


@pytest.mark.parametrize(
    "form", ["trained head", "frozen head", "tied head", "frozen head, sharded", "LoRA switched off"]
)
@pytest.mark.parametrize("direction", ["base-tuned", "tuned-base"])
def test_a_checkpoint_that_trains_in_full_is_aligned_to_states_and_head_of_the_model_that_it_names(
    tmp_path, monkeypatch, form, direction
):
    data, tied = batch(), form == "tied head"
    origin = base(tie_word_embeddings=tied)
    folder = build(origin, data, tmp_path)
    before = content(tmp_path)
    model = trained(tie_word_embeddings=tied)
    model.lm_head.weight.requires_grad_(not form.startswith("frozen"))
    if form == "frozen head, sharded":
        monkeypatch.setattr(head, "_gathers", lambda module: module is model.lm_head)
    if form == "LoRA switched off":
        model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        model.base_model.disable_adapter_layers()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora" not in name)
    answer, gradients = expected(model, data, reference=logits(origin, data), direction=direction)
    for _ in range(2):
        loss, found = step(model, data, selfaug_cache=folder, selfaug_direction=direction)
        assert loss.item() == pytest.approx(answer.loss, rel=1e-4)
        assert worst_error(found, gradients) < ROUNDED
        assert metrics.RUNNING.take()["selfaug/kl"] == pytest.approx(answer.kl, rel=2e-3)
    assert content(tmp_path) == before


def test_the_run_says_whose_states_and_head_it_aligns_to(tmp_path, caplog):
    origin = base()
    origin.config._name_or_path = "the/original"
    folder = build(origin, batch(), tmp_path)
    model = trained()
    with caplog.at_level("WARNING", logger="transformers.selfaug"):
        step(model, batch(), selfaug_cache=folder)
        step(model, batch(), selfaug_cache=folder)
    said = [record.getMessage() for record in caplog.records if "SelfAug is on" in record.getMessage()]
    assert len(said) == 1
    assert f"full fine-tuning against the states and the head of the/original in {folder}" in said[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"vocab_size": V + 3}, r"\(61, 32\) .* needs \(64, 32\)"), ({"hidden_size": 64}, r"\(61, 64\)")],
)
def test_a_model_of_another_vocabulary_or_width_is_refused(tmp_path, options, said):
    folder = build(base(), batch(), tmp_path)
    with pytest.raises(CacheError, match=said):
        step(base(**options).train(), batch(), selfaug_cache=folder)


def test_a_folder_that_lora_filled_has_no_head_for_a_model_that_trains_in_full(tmp_path):
    step(with_lora(base()), batch(), selfaug_cache=tmp_path)
    folder = next(tmp_path.glob("*/model.json")).parent
    for named in (tmp_path, folder):
        with pytest.raises(CacheError, match="was filled by LoRA training, which keeps no head"):
            step(base().train(), batch(), selfaug_cache=named)


@pytest.mark.parametrize("damage", ["no head", "no torch file", "head of another shape", "model.json", "fields"])
def test_a_damaged_folder_is_an_error_that_names_the_file(tmp_path, damage):
    folder = build(base(), batch(), tmp_path)
    file = folder / ("model.json" if damage in ("model.json", "fields") else "head.pt")
    if damage == "no head":
        file.unlink()
    elif damage == "head of another shape":
        torch.save({"weight": torch.zeros(3, 4)}, file)
    else:
        file.write_text('{"model": "a"}' if damage == "fields" else "no")
    with pytest.raises(CacheError) as error:
        step(base().train(), batch(), selfaug_cache=folder)
    assert str(file if damage != "head of another shape" else folder) in str(error.value)


def test_base_weights_that_are_replaced_during_a_run_have_states_of_their_own(tmp_path):
    """Otherwise states of the old weights would go through the head of the new."""
    data, model = batch(), with_lora(base())
    step(model, data, selfaug_cache=tmp_path)
    other = base(seed=3)
    plain = model.get_base_model()
    names = {name: name.replace(".base_layer", "") for name in plain.state_dict() if "lora_" not in name}
    plain.load_state_dict({name: other.state_dict()[new] for name, new in names.items()}, strict=False)
    answer, gradients = expected(model, data, reference=logits(other, data))
    for _ in range(2):
        loss, found = step(model, data, selfaug_cache=tmp_path)
        assert loss.item() == pytest.approx(answer.loss, rel=1e-4)
        assert worst_error(found, gradients) < ROUNDED


@pytest.mark.parametrize("adapters", ["none", "LoRA on the head", "LoRA on a tied head", "copy of the head"])
def test_the_reference_is_the_base_model_from_disk_as_from_lora_off(tmp_path, adapters):
    options = {"target_modules": ALL_LINEAR + ["lm_head"] * adapters.startswith("LoRA")}
    if adapters == "copy of the head":
        options["modules_to_save"] = ["lm_head"]
    data, origin = batch(), base(tie_word_embeddings="tied" in adapters)
    model = with_lora(copy.deepcopy(origin), **options)
    answer, gradients = expected(model, data, reference=logits(origin, data))
    for folder, bound in ((None, 1e-4), (tmp_path, 1e-4), (tmp_path, ROUNDED)):
        loss, found = step(model, data, **({} if folder is None else {"selfaug_cache": folder}))
        assert loss.item() == pytest.approx(answer.loss, rel=1e-4)
        assert worst_error(found, gradients) < bound


@pytest.mark.skipif(not hasattr(base().model, "rotary_emb"), reason="this release's Qwen2 has no such kind of RoPE")
def test_states_that_depend_on_the_length_of_the_batch_are_not_read_for_one_of_another_length(tmp_path):
    """rope_type "dynamic": with LoRA untrained the KL is 0, whatever was in the cache before."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    key = "rope_parameters" if hasattr(base().config, "rope_parameters") else "rope_scaling"
    short = batch("right", B=3, T=11)
    long = {name: torch.nn.functional.pad(value, (0, 20), value=fill) for (name, value), fill in
            zip(short.items(), (1, -100, 0))}  # fmt: skip
    model = with_lora(base(max_position_embeddings=8, **{key: rope}), perturbed=False)
    for data in (short, long, short, long):
        step(model, data, selfaug_cache=tmp_path)
        assert abs(metrics.RUNNING.take()["selfaug/kl"]) < 1e-6
    assert not list(tmp_path.glob("*/*/*.ref"))
    full = base(max_position_embeddings=8, **{key: rope})
    with pytest.raises(CacheError, match="depend on the length of the batch"):
        build(full, short, tmp_path)
    with pytest.raises(CacheError, match="depend on the length of the batch"):
        step(full.train(), short, selfaug_cache=tmp_path)


def test_a_row_with_a_masked_token_in_it_is_another_sample_than_one_without_that_token(tmp_path):
    """The tokens after it are further away from those before it. With LoRA untrained the KL is 0."""
    model, data = with_lora(base(), perturbed=False), batch(padding=None)
    for layer in model.get_base_model().model.layers:
        layer.self_attn.q_proj.base_layer.weight.data *= 3000  # distances matter
    mask = torch.ones_like(data["input_ids"])
    mask[:, 2] = 0
    holed = {**data, "attention_mask": mask, "labels": data["labels"].masked_fill(mask == 0, -100)}
    closed = {name: torch.cat((value[:, :2], value[:, 3:]), 1) for name, value in data.items()}
    for given in (closed, holed):
        step(model, given, selfaug_cache=tmp_path)
        assert abs(metrics.RUNNING.take()["selfaug/kl"]) < 1e-7


def test_a_batch_without_aligned_positions_needs_no_states_from_disk(tmp_path):
    data = batch(padding=None)
    folder = build(base(), data, tmp_path)
    free = {"input_ids": data["input_ids"], "labels": data["input_ids"]}
    for model in (trained(), with_lora(base())):
        with settings(selfaug="0"):
            stock = model(**free).loss
        loss, _ = step(model, free, selfaug_cache=folder)
        assert loss.item() == pytest.approx(stock.item(), rel=1e-5)


def test_a_process_without_aligned_positions_makes_no_pass_that_other_processes_would_not_make(tmp_path, monkeypatch):
    """Of a sharded model that trains in full: the others read their states from disk."""
    data = batch(padding=None)
    folder = build(base(), data, tmp_path)
    model, passes = trained(), []
    monkeypatch.setattr(head, "_gathers", lambda module: module in list(model.model.layers))
    model.model.register_forward_pre_hook(lambda *_: passes.append(1))
    step(model, {"input_ids": data["input_ids"], "labels": data["input_ids"]}, selfaug_cache=folder)
    assert len(passes) == 1


def test_build_says_what_to_set_for_which_training(tmp_path, capsys):
    base().save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows(batch())))
    arguments = ["build", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--cache", tmp_path / "c"]
    assert reference_cache.main([str(argument) for argument in arguments]) == 0
    said = capsys.readouterr().out
    folder = next((tmp_path / "c").glob("*/model.json")).parent
    assert f"Set SELFAUG_CACHE={tmp_path / 'c'} to train this model, with LoRA or in full." in said
    assert f"Set SELFAUG_CACHE={folder} to go on, in full, from a checkpoint" in said
    arguments[-1] = folder  # the folder of the model itself will do as well
    assert reference_cache.main([str(argument) for argument in arguments]) == 0
    assert f"Set SELFAUG_CACHE={tmp_path / 'c'} to train" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["LoRA on the head", "copy of the head"])
def test_an_adapter_of_the_head_that_trains_and_is_not_active_changes_nothing(form):
    options = {"target_modules": ["q_proj", "lm_head"]} if form == "LoRA on the head" else {
        "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}  # fmt: skip
    data, origin = batch(), base()
    model = with_lora(copy.deepcopy(origin), **options)
    model.add_adapter("waiting", LoraConfig(r=4, **options))
    for name, parameter in model.named_parameters():
        if "waiting" in name:
            parameter.requires_grad_()
    answer, gradients = expected(model, data, reference=logits(origin, data))
    loss, found = step(model, data)
    assert not any("waiting" in name for name in found)  # as with stock: no gradient, so no weight decay
    assert loss.item() == pytest.approx(answer.loss, rel=1e-4)
    assert worst_error(found, gradients) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("form", ["frozen", "trained", "trained, sharded", "frozen, sharded"])
@pytest.mark.parametrize("way", ["fused", "around"])
def test_the_loss_has_the_dtype_of_stocks(monkeypatch, dtype, form, way):
    targets = ["q_proj"] + ["lm_head"] * form.startswith("trained")
    model = with_lora(base(), std=0.01, target_modules=targets).to(dtype)
    data = {**batch(), "return_dict": way == "fused"}
    with settings(selfaug="0"):
        stock = model(**data)[0]
    if form.endswith("sharded"):
        layer = getattr(model.get_base_model().lm_head, "base_layer", model.get_base_model().lm_head)
        monkeypatch.setattr(head, "_gathers", lambda module: module is layer)
    loss = model(**data)[0]
    loss.backward()
    assert loss.dtype == stock.dtype == torch.float32


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_that_trains_is_held_to_what_it_was_at_the_start(tied):
    """SELFAUG_REFERENCE=start with base weights that train beside LoRA."""
    data = batch()
    model = with_lora(base(tie_word_embeddings=tied))
    model.get_base_model().lm_head.weight.requires_grad_()
    start = copy.deepcopy(model)
    step(model, data, selfaug_reference="start")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    answer, gradients = expected(model, data, reference=logits(start, data))
    loss, found = step(model, data, selfaug_reference="start")
    assert loss.item() == pytest.approx(answer.loss, rel=1e-4)
    assert worst_error(found, gradients) < 1e-4


@pytest.mark.parametrize("first", ["documents apart", "documents joined"])
def test_packed_rows_whose_documents_transformers_joins_are_another_sample_than_those_it_tells_apart(tmp_path, first):
    """It tells them apart by their position ids only where it fills no key-value cache. LoRA is untrained: KL is 0."""
    model, data = with_lora(base(), perturbed=False), batch(padding=None)
    for layer in model.get_base_model().model.layers:
        layer.self_attn.q_proj.base_layer.weight.data *= 3000  # which tokens are seen matters
    data["position_ids"] = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]]).expand(3, -1)
    for use_cache in (first == "documents joined", first != "documents joined"):
        step(model, {**data, "use_cache": use_cache}, selfaug_cache=tmp_path)
        assert abs(metrics.RUNNING.take()["selfaug/kl"]) < 1e-7


def test_a_reference_of_nothing_that_trains_is_none():
    assert reference_of(base().train().requires_grad_(False), config.read(None, {"SELFAUG_CACHE": "unused"})) is None
    assert reference_of(base().train(), config.read(None, {})) is None
