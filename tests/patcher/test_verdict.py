"""`status --model`: does SelfAug act on this model?"""

from __future__ import annotations

import json
import sys

import pytest
from stand_ins import make_release

from selfaug_patcher import checkpoint, families, payload, pins, verdict
from selfaug_patcher.environment import discover
from selfaug_patcher.errors import DONE, FAILED, MODIFIED, UNSUPPORTED, USAGE
from selfaug_patcher.state import inspect

QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}


@pytest.fixture
def asked(monkeypatch, place):
    """`status --model` for a model with the given config; the stand-in of transformers cannot read one."""

    def ask(config=QWEN2, **options) -> dict:
        monkeypatch.setattr(checkpoint, "read", lambda environment, name: dict(config))
        return place.run("status", "--model", "mine", "--json", **options).data

    return ask


def test_a_stock_model_of_a_pinned_release_needs_its_install(asked):
    answer = asked()
    model = answer["model"]
    assert (model["acts"], model["family"], model["state"], model["trust"]) == (False, "qwen2", "stock", "pinned")
    assert model["next"].endswith(" qwen2")
    assert answer["exit_code"] == FAILED


def test_selfaug_acts_on_a_model_of_a_patched_family(place, asked):
    place.done("install")
    answer = asked()
    assert (answer["model"]["acts"], answer["model"]["next"], answer["exit_code"]) == (True, "", DONE)


def test_selfaug_does_not_act_while_pefts_layer_is_stock(place, asked):
    stock = place.layer.read_bytes()
    place.done("install")
    place.layer.write_bytes(stock)
    answer = asked()
    assert (answer["model"]["state"], answer["model"]["acts"]) == ("patched", False)
    assert answer["model"]["next"].endswith(" qwen2")


def test_an_edited_file_is_told_with_what_to_do(place, asked):
    place.model.write_text(place.model.read_text() + "# mine\n")
    answer = asked()
    assert [problem["id"] for problem in answer["model"]["refused"]] == ["modified-file"]
    assert answer["model"]["next"] == answer["model"]["refused"][0]["do"]
    assert answer["exit_code"] == MODIFIED


def test_a_family_that_the_release_does_not_have_is_refused(asked):
    answer = asked({"architectures": [families.MODELS[-1].class_name]})
    assert (answer["model"]["acts"], answer["exit_code"]) == (False, UNSUPPORTED)
    assert answer["model"]["refused"][0]["id"] == "unpinned-release"


def test_a_class_without_a_patch_is_the_error_that_install_gives(place, monkeypatch):
    monkeypatch.setattr(checkpoint, "read", lambda environment, name: {"architectures": ["GPT2LMHeadModel"]})
    result = place.run("status", "--model", "mine")
    assert (result.code, "error[unknown-family]" in result.err) == (UNSUPPORTED, True)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, {}),
        ({"tie_word_embeddings": False}, {"tied": False}),
        ({"final_logit_softcapping": 30.0}, {"soft_cap": 30.0}),
        ({"final_logit_softcapping": None, "logit_scale": 0.0625}, {"scale": 0.0625}),
        ({"text_config": {"logits_scaling": 8, "tie_word_embeddings": True}}, {"tied": True, "scale": 8}),
    ],
)
def test_of_the_head_only_what_the_config_says_is_told(config, expected):
    assert verdict.head(config) == expected


def test_the_lora_targets_are_those_that_peft_would_take():
    constants = pytest.importorskip("peft.utils").TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    package = discover(sys.executable).packages["peft"]
    for family in ("qwen2", "llama", "no_such_type"):
        assert verdict.lora_targets(package, {"model_type": family}) == constants.get(family)


def test_a_real_folder_and_real_packages_are_answered_in_words(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**QWEN2, "tie_word_embeddings": True}))
    environment = discover(sys.executable)
    state = inspect(environment, pins.load(), payload.load())
    lines = verdict.as_text(verdict.verdict(environment, state, str(tmp_path))).splitlines()
    assert str(tmp_path) in lines[0]
    assert any(line.split() == ["head", "tied", "to", "the", "embeddings"] for line in lines)
    assert any("q_proj, v_proj; with all-linear" in line for line in lines)


def test_a_release_that_nobody_has_pinned_was_never_tried(make_place, tmp_path, monkeypatch):
    place = make_place(transformers="2.0")
    selfaug = make_release(tmp_path / "unpinned", "0.1.0", releases=("1.0",))
    monkeypatch.setattr(checkpoint, "read", lambda environment, name: dict(QWEN2))
    model = place.run("status", "--model", "mine", "--json", selfaug=selfaug).data["model"]
    assert (model["state"], model["trust"]) == ("unpinned", verdict.NEVER_TRIED)
    assert model["next"].endswith(" qwen2")


def test_a_model_without_a_name_is_an_error_and_not_the_answer_for_no_model(place):
    place.done("install")
    result = place.run("status", "--model", "")
    assert (result.code, result.out) == (USAGE, "")
    assert result.err.startswith("error[no-config]: cannot read the config of ''")
