"""The reference from disk: the same gradients, whoever else writes, whatever became of the files; and full
fine-tuning.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import base, batch, longer, settings, taken_gradients, with_lora, worst_error
from transformers import Trainer, TrainingArguments

from selfaug import config, positions, reference_cache
from selfaug.reference import cache, decoder
from selfaug.reference.entries import Entries
from selfaug.reference.fingerprint import fingerprint
from selfaug.reference.samples import autocast_dtype, samples
from selfaug.toolkit import training_rows
from selfaug.trainers import metrics

KEY, OTHER = b"k" * 32, b"o" * 32


def step(model, data):
    metrics.RUNNING.clear()
    model(**data).loss.backward()
    return taken_gradients(model)


def passes(monkeypatch):
    """A list that grows with every reference pass."""
    made = []
    real = decoder.hidden_states
    monkeypatch.setattr(decoder, "hidden_states", lambda *args: made.append(1) or real(*args))
    return made


@pytest.mark.parametrize("sample", ["1", "0.5"])
@pytest.mark.parametrize("padding", ["right", "left", None])
def test_the_second_epoch_reads_and_gives_the_same_gradients(tmp_path, monkeypatch, padding, sample):
    model, data = with_lora(base()), batch(padding)
    with settings(selfaug_sample=sample):
        torch.manual_seed(0)
        expected = step(model, data)
    made = passes(monkeypatch)
    with settings(selfaug_cache=tmp_path, selfaug_sample=sample):
        torch.manual_seed(0)
        first = step(model, data)
        assert len(made) == 1
        torch.manual_seed(0)
        second = step(model, data)
    assert len(made) == 1
    assert worst_error(first, expected) < 1e-6
    assert worst_error(second, expected) < 2e-3  # float16 on disk


def test_a_sample_is_known_in_another_batch_with_other_padding(tmp_path, monkeypatch):
    model, data = with_lora(base()), batch("right")
    made = passes(monkeypatch)
    with settings(selfaug_cache=tmp_path):
        step(model, data)
        alone = {name: tensor[:1, :8] for name, tensor in data.items()}
        step(model, alone)
        step(model, {name: tensor.flip(0) for name, tensor in data.items()})
        assert len(made) == 1
        changed = dict(data, input_ids=data["input_ids"].clone())
        changed["input_ids"][1, 0] += 1
        step(model, changed)
        assert len(made) == 2


def test_bfloat16_states_are_kept_exactly(tmp_path):
    states = torch.randn(5, 8).bfloat16()
    store = Entries(tmp_path / "f", 10**6)
    store.put(KEY, states)
    assert torch.equal(store.get(KEY, 5, 8), states)


def test_float32_states_are_rounded_by_at_most_the_stated_error(tmp_path):
    states = torch.cat((torch.randn(50, 8) * 30, torch.randn(50, 8) * 1e-6))
    store = Entries(tmp_path / "f", 10**6)
    store.put(KEY, states)
    found = store.get(KEY, 100, 8)
    assert found.dtype == torch.float32
    assert ((found - states).abs() <= torch.maximum(states.abs() * 2**-11, torch.tensor(3e-8))).all()


def test_numbers_beyond_float16_are_kept_in_float32(tmp_path):
    states = torch.randn(5, 8) * 1e6
    store = Entries(tmp_path / "f", 10**6)
    store.put(KEY, states)
    assert torch.equal(store.get(KEY, 5, 8), states)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign", "header", "longer"])
def test_a_damaged_or_foreign_entry_is_missing_and_removed(tmp_path, damage):
    store = Entries(tmp_path / "f", 10**6)
    store.put(KEY, torch.randn(5, 8))
    path = next(tmp_path.glob("f/*/*.ref"))
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[100] ^= 1
    elif damage == "cut":
        content = content[:-1]
    elif damage == "empty":
        content = bytearray()
    elif damage == "foreign":
        store.put(OTHER, torch.randn(5, 8))
        content = next(tmp_path.glob(f"f/*/{OTHER.hex()}.ref")).read_bytes()
    elif damage == "header":
        content[8] = 200
    else:
        content += b"\0"
    path.write_bytes(content)
    assert store.get(KEY, 5, 8) is None
    assert damage == "empty" or not path.exists()
    store.put(KEY, torch.ones(5, 8))
    assert store.get(KEY, 5, 8).sum() == 40


def test_what_a_run_uses_is_never_evicted_and_what_none_uses_goes_first(tmp_path):
    old = Entries(tmp_path / "old", 10**6)
    for i in range(4):
        old.put(bytes([i]) * 32, torch.randn(4, 8))
    for i, path in enumerate(sorted(tmp_path.glob("old/*/*.ref"))):
        os.utime(path, (1000 + i, 1000 + i))
    run = Entries(tmp_path / "old", 5 * (64 + 64))
    assert run.get(bytes([0]) * 32, 4, 8) is not None  # used now, though it was the oldest
    assert all(run.put(bytes([i]) * 32, torch.randn(4, 8)) for i in (10, 11, 12, 13))
    assert run.get(bytes([0]) * 32, 4, 8) is not None
    assert [run.get(bytes([i]) * 32, 4, 8) is None for i in (1, 2, 3)] == [True] * 3
    assert not run.put(bytes([14]) * 32, torch.randn(4, 8)), "all that is left is in use"
    assert sum(p.stat().st_size for p in tmp_path.glob("*/*/*.ref")) <= 5 * 128


def test_a_cache_that_is_full_or_cannot_be_written_does_not_stop_a_run(tmp_path):
    model, data = with_lora(base()), batch()
    expected = step(model, data)
    with settings(selfaug_cache=tmp_path, selfaug_cache_gb="0"):
        for _ in range(2):
            assert worst_error(step(model, data), expected) < 1e-6
    assert not list(tmp_path.glob("*/*/*.ref"))
    (tmp_path / "file").touch()
    with settings(selfaug_cache=tmp_path / "file" / "below"):
        assert worst_error(step(with_lora(base()), data), expected) < 1e-6


def test_an_entry_that_another_process_evicts_stays_readable_where_it_is_mapped(tmp_path):
    store = Entries(tmp_path / "f", 10**6)
    states = torch.randn(5, 8).half()
    store.put(KEY, states)
    found = store.get(KEY, 5, 8)
    next(tmp_path.glob("f/*/*.ref")).unlink()
    assert torch.equal(found, states)


def test_the_fingerprint_is_the_base_models_with_and_without_lora_and_any_change_changes_it():
    model = base()
    plain = fingerprint(model)
    assert fingerprint(with_lora(base()).base_model.model) == plain
    assert fingerprint(base(seed=1)) != plain
    assert fingerprint(base(num_attention_heads=8, num_key_value_heads=2, head_dim=8)) != plain
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] += 1e-3
    assert fingerprint(model) != plain


def data_file(path, data):
    lines = []
    for row in range(len(data["input_ids"])):
        real = data.get("attention_mask", torch.ones_like(data["labels"]))[row].bool()
        lines.append(json.dumps({name: data[name][row][real].tolist() for name in ("input_ids", "labels")}))
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def built(tmp_path):
    """(folder, batch): a cache built by the command from a saved model."""
    data = batch()
    base().save_pretrained(tmp_path / "model")
    arguments = ["build", "--model", tmp_path / "model", "--data", data_file(tmp_path / "rows.jsonl", data)]
    assert reference_cache.main([str(a) for a in (*arguments, "--cache", tmp_path / "cache")]) == 0
    return tmp_path / "cache", data


def test_a_cache_that_was_built_serves_a_lora_run_from_its_first_step(built, monkeypatch):
    folder, data = built
    model = with_lora(base())
    expected = step(model, data)
    made = passes(monkeypatch)
    with settings(selfaug_cache=folder):
        assert worst_error(step(model, data), expected) < 2e-3
    assert not made


@pytest.mark.parametrize("tied", [False, True])
def test_full_fine_tuning_is_held_to_the_built_base(tmp_path, tied):
    """After the weights have moved, loss and gradient are those of the equation with the base model's logits."""
    data = batch()
    origin = base(tie_word_embeddings=tied)
    origin.save_pretrained(tmp_path / "model")
    arguments = ["build", "--model", tmp_path / "model", "--data", data_file(tmp_path / "rows.jsonl", data)]
    assert reference_cache.main([str(a) for a in (*arguments, "--cache", tmp_path / "cache")]) == 0
    model = base(tie_word_embeddings=tied).train()
    with settings(selfaug_cache=tmp_path / "cache"):
        step(model, data)
        assert metrics.RUNNING.take()["selfaug/kl"] < 1e-4
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        found = step(model, data)
        logged = metrics.RUNNING.take()
    aligned = (data["labels"] == -100) & data["attention_mask"].bool()
    with torch.no_grad():
        log_q = origin(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits.log_softmax(-1)
    log_p = model(input_ids=data["input_ids"], attention_mask=data["attention_mask"]).logits.log_softmax(-1)
    kl = (log_q.exp() * (log_q - log_p)).sum(-1)[aligned].mean()
    assert logged["selfaug/kl"] == pytest.approx(kl.item(), rel=2e-3)
    targets = torch.nn.functional.pad(data["labels"][:, 1:], (0, 1), value=-100)
    nll = torch.nn.functional.nll_loss(log_p.flatten(0, 1), targets.flatten(), ignore_index=-100)
    (nll + 0.5 * kl).backward()
    assert worst_error(found, taken_gradients(model)) < 5e-3


def test_full_fine_tuning_on_a_sample_that_is_not_cached_is_an_error_that_says_so(built):
    folder, data = built
    model = base().train()
    with settings(selfaug_cache=folder):
        step(model, data)
        data["input_ids"][1, 0] += 1
        with pytest.raises(cache.CacheError, match=r"1 of the 3 samples .* selfaug.reference_cache build"):
            step(model, data)


def test_a_resumed_full_fine_tuning_is_told_to_name_the_models_folder(built):
    folder, data = built
    model = base(seed=3).train()
    with settings(selfaug_cache=folder), pytest.raises(cache.CacheError, match="set SELFAUG_CACHE=") as error:
        step(model, data)
    named = str(error.value).split("set SELFAUG_CACHE=")[1].split(" ")[0]
    with settings(selfaug_cache=named):
        assert step(model, data)
        assert metrics.RUNNING.take()["selfaug/kl"] > 1e-3


def test_full_fine_tuning_without_a_cache_is_stock():
    model, data = base().train(), batch()
    expected = step(model, data)
    with settings(selfaug="0"):
        found = step(model, data)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_folder_that_is_none_is_refused():
    with pytest.raises(config.SettingError, match="SELFAUG_CACHE must be a folder"):
        config.read(None, {"SELFAUG_CACHE": ""})


def test_a_model_into_which_lora_was_merged_is_another_model_though_it_is_the_same_object(tmp_path):
    model, data = with_lora(base()), batch()
    with settings(selfaug_cache=tmp_path):
        step(model, data)
        inner = model.merge_and_unload()
        merged = with_lora(inner)
        assert merged.get_base_model() is model.get_base_model()
        found = step(merged, data)
    assert len(list(tmp_path.glob("*/model.json"))) == 2
    assert worst_error(found, step(merged, data)) < 2e-3


def test_lora_on_a_sharded_model_is_refused_whichever_folder_is_named(built, monkeypatch):
    """A process that finds all of its samples would not take part in the others' reference pass."""
    folder, data = built
    model = with_lora(base())
    named = next(folder.glob("*/model.json")).parent
    monkeypatch.setattr(cache, "is_sharded", lambda model: True)
    with settings(selfaug_cache=named), pytest.raises(cache.CacheError, match="this model is sharded"):
        step(model, data)


def test_each_folder_has_its_own_head(tmp_path):
    """Of a model that trains in full."""
    model, data = base().train(), batch()
    found = []
    for name in ("one", "other"):
        given = base(seed=len(found))
        chosen = config.read(None, {"SELFAUG_CACHE": str(tmp_path / name)})
        reference_cache.build(given, iter([{k: data[k][0].tolist() for k in ("input_ids", "labels")}]), chosen)
        folder = next((tmp_path / name).glob("*/model.json")).parent
        built = cache.built_reference(model, config.read(None, {"SELFAUG_CACHE": str(folder)}))
        found.append(torch.equal(built.head(torch.eye(32)), given.lm_head.weight.T))
    assert found == [True, True]


def test_documents_that_a_mask_joins_are_another_sample_than_those_that_position_ids_part():
    """transformers takes position ids that start again for documents only where there is no mask."""
    data = batch(padding=None)
    numbers = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]]).expand(3, -1)
    keys = []
    for mask in (None, torch.ones_like(numbers)):
        chosen = positions.select(data["labels"], mask, numbers, "input", "token", False)
        given = {"input_ids": data["input_ids"], "attention_mask": mask, "position_ids": numbers}
        found = samples(given, chosen, "fingerprint", fills_cache=False, autocast=None)
        keys.append({key for key, _ in found})
    assert len(keys[0]) == len(keys[1]) == 3
    assert not keys[0] & keys[1]


@pytest.mark.skipif(not hasattr(base().model, "rotary_emb"), reason="this release takes no such mask")
@pytest.mark.parametrize("form", ["4-D", "by type of layer"])
def test_a_mask_that_no_key_accounts_for_is_not_cached(tmp_path, form):
    data = batch(padding=None)
    causal = torch.ones(11, 11, dtype=torch.bool).tril().expand(3, 1, 11, 11)
    mask = causal if form == "4-D" else {"full_attention": causal}
    found = []
    for folder in ({}, {"selfaug_cache": tmp_path}):
        model = with_lora(base())
        with settings(**folder):
            found.append(step(model, {**data, "attention_mask": mask}))
    assert worst_error(found[1], found[0]) < 1e-6
    assert not list(tmp_path.glob("*/*/*.ref"))


def sharp():
    """A model whose logits are of some nats, so that the KL shows where a state is rounded otherwise."""
    model = base()
    model.lm_head.weight.data *= 50
    return model


@contextlib.contextmanager
def computing(under):
    """Within: autocast to bfloat16, or none."""
    with torch.autocast("cpu", torch.bfloat16, enabled=under == "autocast"):
        yield


@pytest.mark.parametrize("order", [("autocast", "none"), ("none", "autocast")], ids=" then ".join)
def test_a_run_under_autocast_and_one_without_do_not_read_each_others_states(tmp_path, monkeypatch, order):
    """With LoRA untrained the KL is 0."""
    model, data, made = with_lora(sharp(), perturbed=False), longer(), passes(monkeypatch)
    with settings(selfaug_cache=tmp_path):
        for under in (*order, *order):
            with computing(under):
                step(model, data)
            assert abs(metrics.RUNNING.take()["selfaug/kl"]) < 1e-5
    assert len(made) == 2  # the second pair reads


@pytest.mark.parametrize("under", ["none", "autocast"])
def test_full_fine_tuning_begins_with_a_kl_of_0_against_states_that_were_built_as_it_computes(tmp_path, under):
    data = longer()
    sharp().save_pretrained(tmp_path / "model")
    arguments = ["build", "--model", tmp_path / "model", "--data", data_file(tmp_path / "rows.jsonl", data)]
    arguments += ["--cache", tmp_path / "cache", *(["--autocast", "bfloat16"] if under == "autocast" else [])]
    assert reference_cache.main([str(a) for a in arguments]) == 0
    origin, model = sharp(), sharp().train()
    with settings(selfaug_cache=tmp_path / "cache"), computing(under):
        step(model, data)
        assert abs(metrics.RUNNING.take()["selfaug/kl"]) < 1e-5
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        step(model, data)
        logged = metrics.RUNNING.take()
        aligned = (data["labels"] == -100) & data["attention_mask"].bool()
        given = {name: data[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            log_q, log_p = (m(**given).logits.double().log_softmax(-1) for m in (origin, model))
    assert logged["selfaug/kl"] == pytest.approx(
        (log_q.exp() * (log_q - log_p)).sum(-1)[aligned].mean().item(), rel=2e-2
    )


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_states_are_built_with_the_implementation_of_attention_that_was_asked_for(tmp_path, monkeypatch, name):
    sharp().save_pretrained(tmp_path / "model")
    rows, used = data_file(tmp_path / "rows.jsonl", batch()), []
    build = reference_cache.build

    def noting(model, *given):
        used.append(model.config._attn_implementation)
        return build(model, *given)

    monkeypatch.setattr(reference_cache, "build", noting)
    arguments = ["build", "--model", tmp_path / "model", "--data", rows, "--cache", tmp_path / "cache"]
    assert reference_cache.main([*map(str, arguments), "--attention", name]) == 0
    assert used == [name]


def test_an_implementation_of_attention_that_transformers_does_not_have_is_refused(tmp_path, capsys):
    sharp().save_pretrained(tmp_path / "model")
    arguments = ["build", "--model", tmp_path / "model", "--data", data_file(tmp_path / "rows.jsonl", batch())]
    arguments += ["--cache", tmp_path / "cache", "--attention", "quick"]
    assert reference_cache.main([str(a) for a in arguments]) == 1
    assert "quick" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("built", "under", "said"),
    [
        ("none", "autocast", "runs under autocast to bfloat16 .*`build` with `--autocast bfloat16`"),
        ("autocast", "none", "runs without autocast.*`build` without `--autocast`"),
    ],
)
def test_states_that_were_built_otherwise_than_full_fine_tuning_computes_are_missing(tmp_path, built, under, said):
    model, data = sharp().train(), batch()
    rows = [json.loads(line) for line in data_file(tmp_path / "rows.jsonl", data).read_text().splitlines()]
    given = config.read(None, {"SELFAUG_CACHE": str(tmp_path / "cache")})
    reference_cache.build(sharp(), rows, given, torch.bfloat16 if built == "autocast" else None)
    missing = pytest.raises(cache.CacheError, match=f"3 of the 3 samples .*{said}")
    with settings(selfaug_cache=tmp_path / "cache"), computing(under), missing:
        step(model, data)


def test_a_row_without_labels_is_kept_for_full_fine_tuning_where_it_is_an_anchor(tmp_path):
    """With SELFAUG_POSITIONS=output nothing else of such a row is aligned."""
    model, data = sharp().train(), batch(padding=None)
    data["labels"][1] = -100
    rows = [{name: value[row].tolist() for name, value in data.items()} for row in range(3)]
    variables = {"SELFAUG_CACHE": str(tmp_path), "SELFAUG_POSITIONS": "output", "SELFAUG_ANCHORS": "1"}
    assert reference_cache.build(sharp(), rows, config.read(None, variables))[0] == 3
    with settings(**variables):
        step(model, data)


def test_the_keys_of_samples_without_autocast_are_those_of_release_1_0():
    """Otherwise a cache that a user built would be lost."""
    data = batch()
    chosen = positions.select(data["labels"], data["attention_mask"], None, "input", "token", False)
    given = {name: data[name] for name in ("input_ids", "attention_mask")}

    def keys():
        autocast = autocast_dtype(given, torch.device("cpu"))
        found = samples(given, chosen, "fingerprint", fills_cache=False, autocast=autocast)
        return [key.hex()[:8] for key, _ in found]

    plain = keys()
    assert plain == ["1860f1b3", "eb0e76d0", "c6d724dd"]
    with torch.autocast("cpu", torch.bfloat16):
        bfloat16 = keys()
        with torch.autocast("cpu", enabled=False):
            assert keys() == plain
    float16 = [key.hex()[:8] for key, _ in samples(given, chosen, "fingerprint", False, autocast=torch.float16)]
    assert len({*plain, *bfloat16, *float16}) == 9


def test_build_under_an_autocast_that_torch_does_not_have_there_writes_nothing(tmp_path, monkeypatch):
    given = config.read(None, {"SELFAUG_CACHE": str(tmp_path / "cache")})
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())  # as torch does, with a warning
    with pytest.raises(
        cache.CacheError, match=r"autocast torch.float16 on cpu, and autocast is off there.* Nothing was"
    ):
        reference_cache.build(base(), [], given, torch.float16)
    assert not list(tmp_path.glob("cache/*"))


@pytest.mark.parametrize("kind", ["LoRA", "full"])
def test_trainers_with_and_without_bf16_share_a_cache_and_begin_with_a_kl_of_0(tmp_path, kind):
    """At a learning rate of 0."""
    data = longer(padding=None)
    rows = [{name: value[row] for name, value in data.items()} for row in range(3)]
    given = config.read(None, {"SELFAUG_CACHE": str(tmp_path / "cache")})
    for autocast in (None, torch.bfloat16):
        lists = [{name: value.tolist() for name, value in row.items()} for row in rows]
        if kind == "full":
            reference_cache.build(sharp(), lists, given, autocast)
    with settings(selfaug_cache=tmp_path / "cache"):
        for bf16 in (False, True, False, True):
            model = sharp() if kind == "full" else with_lora(sharp(), perturbed=False)
            options = {"bf16": bf16, "learning_rate": 0.0, "max_steps": 2, "per_device_train_batch_size": 3}
            options.update(logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", label_names=["labels"])
            trainer = Trainer(model, TrainingArguments(tmp_path / "out", **options), train_dataset=rows)
            trainer.train()
            logged = [abs(log["selfaug/kl"]) for log in trainer.state.log_history if "selfaug/kl" in log]
            assert len(logged) == 2
            assert max(logged) < 1e-5, bf16


def test_build_leaves_the_folder_of_another_model_alone(built, tmp_path, capsys):
    folder, _ = built
    own = next(folder.glob("*/model.json")).parent
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    base(seed=3).save_pretrained(tmp_path / "trained")
    arguments = ["build", "--model", tmp_path / "trained", "--data", tmp_path / "rows.jsonl", "--cache", own]
    assert reference_cache.main([str(a) for a in arguments]) == 1
    assert f"{own} is the folder of another model, {tmp_path / 'model'}" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no row has a token at the input positions"),
        ('{"input_ids": [1, 2], "labels": [1, 2]}', "no row has a token at the input positions"),
        ('{"input_ids": [1, 2], "labels": [1, 2]}\n{"prompt"', "rows.jsonl:2: expected JSON"),
        ("7", "rows.jsonl:1: expected an object, found int: 7"),
        ('{"prompt": "a"}', "found the columns prompt, of another form"),
        ('{"messages": []}', "found the columns messages"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "found the columns messages"),
        ('{"input_ids": [1, 2], "labels": [1]}', "found the columns input_ids, labels"),
        ('{"prompt": "\\ud800", "completion": "a"}', r"rows.jsonl:1: prompt holds .ud800, half of a character"),
        (
            '{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "a"}]}',
            r"messages\[0\]: .*text",
        ),
        ('{"messages": [{"role": ["user"]}, {"role": "assistant", "content": "a"}]}', r"messages\[0\]: .*known role"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "prompt": 5}', "prompt is no text: 5"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "input_ids": 3}', "input_ids and labels are not"),
        ('{"messages": [{"role": "assistant", "content": "a"}], "tools": [{}]}', "column tools: neither"),
        ('{"prompt": "a", "completion": "b", "system": "c"}', "column system: neither"),
        ('{"input_ids": [1, -2], "labels": [1, 2]}', r"input_ids\[1\] is -2, which is no token id"),
        ('{"input_ids": [1, 2], "labels": [1, -1]}', r"labels\[1\] is -1, which is no token id"),
        ('{"input_ids": [1, 9999999999999999999999], "labels": [1, 2]}', r"input_ids\[1\] is 9999"),
        ('{"input_ids": [1, 99999], "labels": [-100, 2]}', "rows.jsonl:1: expected token ids below .*found 99999"),
        ('{"input_ids": [1, 2], "labels": [1, 99999]}', "rows.jsonl:1: expected token ids below .*found 99999"),
        ('{"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [0, 1]}', "attention_mask leaves tokens out"),
        ('{"input_ids": [1, 2], "labels": [1, 2], "position_ids": [0, 0]}', "position_ids do not count from 0"),
        ('{"a": 1, "a": 2}', "rows.jsonl:1: the key 'a' is there twice"),
        ("[" * 100_000, "rows.jsonl:1: .*nested deeper"),
        ("{}".encode("utf-16"), "expected UTF-8, found .*rows.jsonl:1: UTF-16"),
        (b'{"input_ids": [1], "labels": [1]}\n\xe9', "rows.jsonl:2: 'utf-8' codec"),
        (b"\xff\xfe", "expected UTF-8"),
        (None, "No such file"),
    ],
)
def test_what_is_no_training_data_is_said_with_its_line_and_marks_nothing_as_built(tmp_path, capsys, text, said):
    if text is not None:
        (tmp_path / "rows.jsonl").write_bytes(text if isinstance(text, bytes) else text.encode())
    base().save_pretrained(tmp_path / "model")
    arguments = ["build", "--model", tmp_path / "model", "--data", tmp_path / "rows.jsonl", "--cache", tmp_path / "c"]
    assert reference_cache.main([str(a) for a in arguments]) == 1
    assert re.search(f"error: .*{said}", capsys.readouterr().err)
    assert not list(tmp_path.glob("c/*/built"))


def test_a_model_that_is_none_and_a_setting_that_is_none_are_errors_not_tracebacks(tmp_path, capsys):
    data_file(tmp_path / "rows.jsonl", batch())
    arguments = ["build", "--model", str(tmp_path / "none"), "--data", str(tmp_path / "rows.jsonl"), "--cache", "c"]
    assert reference_cache.main(arguments) == 1
    assert f"error[no-model]: cannot load {tmp_path / 'none'}" in capsys.readouterr().err
    with settings(selfaug_alpha="much"):
        assert reference_cache.main(arguments) == 1
    assert "SELFAUG_ALPHA must be a number" in capsys.readouterr().err


def test_rows_end_where_lines_end_whatever_their_strings_hold(tmp_path):
    row = {"prompt": "one\u2028two\x85", "completion": "three"}
    (tmp_path / "rows.jsonl").write_text("\ufeff" + json.dumps(row, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert [found for _, found in training_rows.read(tmp_path / "rows.jsonl")] == [row]


ROWS = [{"prompt": "2024-01-01", "completion": "b"}, {"input_ids": [1, 2], "labels": [-100, 2]}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.json", json.dumps(ROWS)),
        ("rows.json", "\n".join(map(json.dumps, ROWS))),
        ("rows", "\n".join(map(json.dumps, ROWS))),
        ("rows.txt", "\ufeff\n\n" + "\n".join(map(json.dumps, ROWS))),
    ],
    ids=["a list", "lines in a .json file", "no suffix", "another suffix"],
)
def test_training_rows_are_read_from_a_list_as_from_lines_whatever_the_files_suffix(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert [row for _, row in training_rows.read(tmp_path / name)] == ROWS


def test_training_rows_are_read_from_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(ROWS[:1] * 3)
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert list(training_rows.read(tmp_path / "rows.parquet")) == [
        (f"{tmp_path / 'rows.parquet'}:{number}", ROWS[0]) for number in (1, 2, 3)
    ]


def test_a_template_that_renders_a_prompt_otherwise_once_an_answer_follows_is_refused():
    class Template:
        def apply_chat_template(self, messages, tokenize, add_generation_prompt=False):
            return f"{len(messages)} messages"

    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    with pytest.raises(training_rows.RowError, match="FILE:3: the chat template renders the prompt otherwise"):
        training_rows.tokenised(row, "FILE:3", Template())


@pytest.mark.parametrize("adds", ["bos", "bos and eos", "nothing"])
def test_a_prompt_begins_as_the_tokenizer_begins_a_text(adds):
    class Letters:
        """A token a letter, and BOS 1 and EOS 2 as its own call adds them."""

        eos_token = "\x02"

        def __call__(self, text, add_special_tokens=True):
            ids = [ord(letter) for letter in text]
            before, after = [1] if "bos" in adds else [], [2] if "eos" in adds else []
            return {"input_ids": [*before, *ids, *after] if add_special_tokens else ids}

    for prompt in ("", "a", "ab", "\x01ab"):
        made = training_rows.tokenised({"prompt": prompt, "completion": "c"}, "FILE:1", Letters())
        first = [1] * ("bos" in adds and prompt[:1] != "\x01") + [ord(letter) for letter in prompt]
        assert made == {"input_ids": [*first, ord("c"), 2], "labels": [-100] * len(first) + [ord("c"), 2]}


def test_a_tokenizer_without_eos_is_said_and_no_traceback():
    class Tokenizer:
        eos_token = None

    with pytest.raises(training_rows.RowError, match="FILE:2: the tokenizer has no EOS token"):
        training_rows.tokenised({"prompt": "a", "completion": "b"}, "FILE:2", Tokenizer())


PARTS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.just("\ud800")
VALUES = st.recursive(PARTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
ROLES = st.sampled_from(["user", "assistant"])
TURN = st.fixed_dictionaries({}, optional=dict.fromkeys(("role", "content", "tool_calls"), VALUES | ROLES))
COLUMNS = ("messages", "prompt", "completion", "input_ids", "labels", "attention_mask", "tools")


@given(st.fixed_dictionaries({}, optional={name: VALUES | st.lists(TURN, max_size=2) for name in COLUMNS}))
@hypothesis.settings(max_examples=300, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_every_row_is_read_or_refused_by_its_line(row):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.jsonl")
        path.write_text(json.dumps(row) + "\n")
        said = f"{path}:1: "
        try:
            assert len(list(training_rows.read(path))) == 1
        except training_rows.RowError as error:
            said = str(error)
        assert f"{path}:1: " in said
