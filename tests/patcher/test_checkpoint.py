"""`install --model`: the family of a model, by its config.json."""

from __future__ import annotations

import json
import sys

import pytest

from selfaug_patcher import checkpoint
from selfaug_patcher.environment import discover
from selfaug_patcher.errors import UNSUPPORTED, USAGE, PatcherError


@pytest.fixture(scope="module")
def here():
    """The environment of the tests, with its real transformers."""
    return discover(sys.executable)


@pytest.fixture
def model(tmp_path):
    def make(**config) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return make


@pytest.mark.parametrize(
    ("config", "family"),
    [
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "llama"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "qwen3_moe"),
        ({"model_type": "gemma2"}, "gemma2"),
    ],
)
def test_a_folder_tells_its_family(here, model, config, family):
    target, note = checkpoint.family_of(here, model(**config))
    assert (target.family, note) == (family, "")


def test_a_class_for_images_without_a_patch_is_of_the_family_that_auto_model_for_causal_lm_loads(here, model):
    name = model(architectures=["Qwen3_5ForNothingKnown"], model_type="qwen3_5")
    target, note = checkpoint.family_of(here, name)
    assert target.family == "qwen3_5"
    assert "SelfAug acts in Qwen3_5ForCausalLM, which AutoModelForCausalLM loads" in note


def test_both_classes_of_a_file_are_of_its_family(here, model):
    for name in ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"):
        target, note = checkpoint.family_of(here, model(architectures=[name], model_type="gemma3"))
        assert (target.family, note) == ("gemma3", "")


def test_a_config_without_a_class_is_of_the_family_of_its_type(here, model):
    assert checkpoint.family_of(here, model(model_type="qwen3_5_text"))[0].family == "qwen3_5"


def test_a_model_of_images_and_text_that_is_loaded_whole_is_refused(here, model):
    with pytest.raises(PatcherError) as refusal:
        checkpoint.family_of(here, model(architectures=["MllamaForConditionalGeneration"], model_type="mllama"))
    assert refusal.value.problems[0].found == "MllamaForConditionalGeneration"


def test_a_model_that_brings_code_of_its_own_is_noted(here, model):
    name = model(architectures=["LlamaForCausalLM"], auto_map={"AutoModelForCausalLM": "modeling.Mine"})
    assert (
        "With trust_remote_code=True that code is loaded, and SelfAug does not act"
        in checkpoint.family_of(here, name)[1]
    )


def test_a_family_without_a_line_is_refused_by_its_class(here, model):
    name = model(architectures=["Qwen4ExpForConditionalGeneration"], model_type="none_such")
    with pytest.raises(PatcherError) as refusal:
        checkpoint.family_of(here, name)
    problem = refusal.value.problems[0]
    assert (problem.exit_code, problem.found) == (UNSUPPORTED, "Qwen4ExpForConditionalGeneration")


@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_folder_without_a_readable_config_is_a_usage_error(here, tmp_path, monkeypatch, content):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(PatcherError) as refusal:
        checkpoint.family_of(here, str(tmp_path))
    assert refusal.value.problems[0].exit_code == USAGE
    assert str(tmp_path) in refusal.value.problems[0].what


@pytest.mark.parametrize("name", ["../tiny", "Someone/No-Such-Model"])
def test_a_name_that_is_no_folder_and_is_not_found_says_so_with_all_that_transformers_said(here, name, monkeypatch):
    """The last line of transformers' message, alone, is that of the manual: "Check your internet connection or ..."."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PatcherError) as refusal:
        checkpoint.family_of(here, name)
    found = refusal.value.problems[0].found
    assert found.startswith("no such folder, and for a name on the hub: OSError: ")
    assert "Repo id must" in found if name == "../tiny" else "cached" in found
    assert "\n" not in found


@pytest.mark.parametrize("verb", ["install", "status"])
def test_without_transformers_a_model_is_not_looked_for(make_place, verb):
    place = make_place(transformers=None)
    result = place.run(verb, "--model", "mine")
    assert (result.code, result.err.split("\n")[0]) == (
        1,
        "error[not-installed]: transformers, which reads a model's config, is not installed",
    )


def test_install_takes_the_family_of_a_model(place, model, capsys):
    # the stand-in of transformers has no cached_file, so the config cannot be read: nothing is written
    before = place.snapshot()
    result = place.run("install", "--model", model(model_type="qwen2"))
    assert (result.code, "cannot read the config" in result.err) == (USAGE, True)
    assert place.snapshot() == before
