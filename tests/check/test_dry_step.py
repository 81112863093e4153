"""`python -m selfaug.check` on a tiny model: what it says is what a step of the training does."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import settings, with_lora
from torch.utils.flop_counter import FlopCounterMode
from transformers.utils import logging

from selfaug.check import batch, cost, shape
from selfaug.check.__main__ import main
from selfaug.trainers import metrics

ROWS = [
    {"messages": [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": "Here."}]},
    {"messages": [{"role": "user", "content": "And the other one, then?"}, {"role": "assistant", "content": "There."}]},
    {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because it is so."}]},
]


@pytest.fixture(autouse=True)
def loggers_as_before():
    """The command silences transformers' loggers, for its process."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture
def check(tiny_model, capsys):
    """The command on the tiny model; its output. ``status``: the exit code that is expected."""

    def run(*options, status=0, model=tiny_model):
        capsys.readouterr()
        assert main(["--model", str(model), *map(str, options)]) == status
        output = capsys.readouterr()
        return output.out or output.err

    return run


@pytest.fixture
def found(check):
    return lambda *options, status=0: json.loads(check("--json", *options, status=status))


def test_its_counts_are_those_of_a_step_of_the_training(found, data, tiny_model):
    from transformers import AutoModelForCausalLM

    said = found("--data", data)["batch"]
    rows = batch.first_rows(data, 8, str(tiny_model), 10**6, None)
    model = with_lora(AutoModelForCausalLM.from_pretrained(tiny_model), target_modules=["q_proj"])
    model(**rows).loss.backward()
    sums = metrics.RUNNING.of(model.get_base_model())
    assert (said["supervised"], said["aligned"]) == (sums.supervised, sums.aligned)
    assert said["rows"] == 3
    assert said["positions"] == rows["labels"].numel()
    assert said["padding"] == int((rows["attention_mask"] == 0).sum()) > 0
    assert said["aligned"] == int(((rows["labels"] == -100) & (rows["attention_mask"] == 1)).sum())


def test_its_operations_are_those_that_torch_counts_on_the_real_model(found, data, tiny_model):
    from transformers import AutoModelForCausalLM

    from selfaug import family

    said = found("--data", data)["costs"]
    rows = batch.first_rows(data, 8, str(tiny_model), 10**6, None)
    model = with_lora(AutoModelForCausalLM.from_pretrained(tiny_model), target_modules=["q_proj", "v_proj"], r=8)
    inner = model.get_base_model()
    inner.set_attn_implementation("eager") if hasattr(inner, "set_attn_implementation") else None
    inner.config._attn_implementation = "eager"
    steps = {"stock": lambda: family.stock_forward(inner)(inner, **rows).loss, "selfaug": lambda: model(**rows).loss}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step().backward()
        # a flash kernel computes the scores of attention once more in its backward
        assert 1 <= said[name]["flops"] / counter.get_total_flops() < 1.2
    assert said["stock fused"]["flops"] < said["stock"]["flops"] < said["selfaug"]["flops"]


@pytest.mark.parametrize("every", [2, 5])
def test_the_cost_of_a_term_at_some_of_the_micro_batches_is_their_mean(found, every):
    """A micro-batch without the term costs what stock with a fused head does."""
    whole = found()["costs"]
    with settings(SELFAUG_EVERY=str(every)):
        said = found()
    mean = (whole["selfaug"]["flops"] + (every - 1) * whole["stock fused"]["flops"]) / every
    assert said["costs"]["selfaug"]["flops"] == pytest.approx(mean, rel=1e-6)
    assert said["costs"]["selfaug"]["peak"] == whole["selfaug"]["peak"]
    assert any(f"One of {every} micro-batches" in note for note in said["notes"])


def test_a_target_for_the_kl_and_a_sample_by_shift_change_no_cost_that_is_not_theirs(found):
    with settings(SELFAUG_SAMPLE="0.25"):
        whole = found()
    with settings(SELFAUG_TARGET_KL="0.05", SELFAUG_SAMPLE="0.25", SELFAUG_SAMPLE_BY="shift"):
        said = found()
    # a uniform sample is drawn first, so the reference pass may stop earlier
    assert 1 <= said["costs"]["selfaug"]["flops"] / whole["costs"]["selfaug"]["flops"] < 1.01
    assert any("follows the KL toward 0.05" in note for note in said["notes"])


def test_stock_makes_all_logits_and_selfaug_those_of_a_chunk(found, monkeypatch):
    with settings(SELFAUG_CHUNK_SIZE="16"):
        said = found()["costs"]
    positions, vocabulary = batch.MADE_UP, 259
    assert said["stock"]["logits"] >= 2 * 4 * positions * vocabulary  # and their gradient
    assert said["selfaug"]["logits"] <= 8 * 4 * 2 * 16 * vocabulary


def test_without_data_it_takes_a_made_up_row(found, check):
    assert found()["batch"] == {
        "rows": 1, "positions": 2048, "padding": 0, "supervised": 308, "aligned": 1740, "computed": 1740,
    }  # fmt: skip
    assert "1 row of made-up data" in check()


def test_it_says_of_each_setting_where_it_comes_from(found, check, tiny_model, tmp_path):
    with settings(SELFAUG_ALPHA="0.3", SELFAUG_SAMPLE="0.25"):
        said, text = found(), check()
    assert said["settings"]["alpha"] == {"value": 0.3, "source": "SELFAUG_ALPHA"}
    assert said["settings"]["positions"] == {"value": "input", "source": "default"}
    assert said["batch"]["computed"] == 435
    assert "SELFAUG_ALPHA=0.3, from the environment; SELFAUG_SAMPLE=0.25, from the environment" in text
    assert "the KL is computed at 435 of them, drawn by uniform" in " ".join(text.split())
    config = json.loads((tiny_model / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "selfaug": {"alpha": 0.2}}))
    assert 'model.config.selfaug["alpha"]=0.2' in check(model=tmp_path)


def test_a_setting_that_is_not_accepted_is_an_error_in_plain_words(check):
    with settings(SELFAUG_ALPHA="much"):
        assert "error: SELFAUG_ALPHA must be a number >= 0, not 'much'." in check(status=1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": []}', "messages is not a list with something in it"),
        ('{"prompt": "a"}', "completion is no text"),
        ("{", "train.jsonl:2"),
    ],
)
def test_a_malformed_row_is_an_error_with_file_and_line(check, data, line, said):
    data.write_text(json.dumps(ROWS[0]) + f"\n{line}\n", encoding="utf-8")
    text = check("--data", data, status=1)
    assert "train.jsonl:2" in text
    assert said in text
    assert "Traceback" not in text


def test_rows_without_a_prompt_are_refused_in_the_words_of_the_training(check, data):
    row = {"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}
    data.write_text(json.dumps(row) + "\n", encoding="utf-8")
    text = " ".join(check("--data", data, status=1).split())
    assert "SelfAug does not act on" in text
    assert "refused SelfAug is on but has nothing to align: in these rows, no token is at the input positions" in text


def test_features_in_place_of_logits_are_named_and_what_they_refuse_is_said(check, found, tmp_path):
    from transformers import Phi3Config

    with settings(SELFAUG_ALIGN="attention"):
        text = " ".join(check().split())
        said = found()
    assert "the MSE holds the model there" in text
    assert "SELFAUG_ALIGN=attention, from the environment" in text
    assert said["costs"]["selfaug"]["flops"] > said["costs"]["stock fused"]["flops"]
    assert said["costs"]["selfaug"]["flops"] < found()["costs"]["selfaug"]["flops"]  # no logits for the KL
    Phi3Config(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
               num_key_value_heads=2, pad_token_id=0).save_pretrained(tmp_path)  # fmt: skip
    with settings(SELFAUG_ALIGN="q"):
        refused = " ".join(check(status=1, model=tmp_path).split())
    assert "refused SELFAUG_ALIGN=q compares the outputs of one module of each name" in refused
    assert "q, k and v are one product" in refused


def test_a_family_that_is_not_patched_is_refused_with_the_command(check, tmp_path):
    from transformers import GPT2Config

    GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=64).save_pretrained(tmp_path)
    text = " ".join(check(status=1, model=tmp_path).split())
    assert "GPT2LMHeadModel is not patched: SelfAug has no patch for" in text
    assert "gpt2 of transformers" in text


def test_selfaug_that_is_switched_off_is_said_with_the_switch(check):
    with settings(SELFAUG="0"):
        assert "refused     SELFAUG switches SelfAug off" in check(status=1)


def test_a_model_that_is_not_there_and_targets_that_it_lacks_are_refused(check, tmp_path):
    assert "cannot load" in check(status=1, model=tmp_path / "nowhere")
    assert "--targets" in check("--targets", "no_such_layer", status=1)


def test_a_dry_step_writes_nothing_where_there_is_a_cache(found, tmp_path):
    with settings(SELFAUG_CACHE=str(tmp_path / "cache")):
        notes = found()["notes"]
    assert any("From the second on, the reference comes from the cache" in note for note in notes)
    assert not (tmp_path / "cache").exists()


def test_no_weight_is_loaded(tiny_model):
    model, said = shape.model(str(tiny_model), "all-linear", checkpointing=True)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert "down_proj" in said


def test_what_is_replaced_while_a_step_is_counted_is_put_back(tiny_model):
    before = torch.nn.functional.scaled_dot_product_attention, torch.autocast
    model, _ = shape.model(str(tiny_model), None, checkpointing=False)
    cost.costs(model, batch.made_up())
    assert (torch.nn.functional.scaled_dot_product_attention, torch.autocast) == before
