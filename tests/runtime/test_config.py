"""Settings come from three places, and a wrong one is named with what would be accepted."""

from __future__ import annotations

import enum
import json
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import base, batch, with_lora
from transformers import Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from selfaug import config
from selfaug.trainers import announce


def test_defaults_are_those_of_the_readme():
    assert config.read(None, {}) == config.Settings(True, 0.5, "base-tuned", "input", "token", None)


def test_the_environment_overrides_the_defaults():
    environ = {
        "SELFAUG": "0",
        "SELFAUG_ALPHA": "1e-1",
        "SELFAUG_DIRECTION": "tuned-base",
        "SELFAUG_POSITIONS": "all",
        "SELFAUG_REDUCTION": "sequence",
        "SELFAUG_CHUNK_SIZE": "64",
    }
    assert config.read(None, environ) == config.Settings(False, 0.1, "tuned-base", "all", "sequence", 64)


def test_the_models_config_overrides_the_environment_key_by_key():
    model_config = SimpleNamespace(selfaug={"alpha": 0.3, "enabled": True, "chunk_size": "auto"})
    found = config.read(model_config, {"SELFAUG": "0", "SELFAUG_ALPHA": "1", "SELFAUG_POSITIONS": "output"})
    assert found == config.Settings(alpha=0.3, positions="output")


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("SELFAUG", "yes", "1 or 0"),
        ("SELFAUG", "", "1 or 0"),
        ("SELFAUG_ALPHA", "-0.1", "a number >= 0"),
        ("SELFAUG_ALPHA", "nan", "a number >= 0"),
        ("SELFAUG_ALPHA", "inf", "a number >= 0"),
        ("SELFAUG_ALPHA", "half", "a number >= 0"),
        ("SELFAUG_DIRECTION", "forward", '"base-tuned" or "tuned-base"'),
        ("SELFAUG_POSITIONS", "Input", '"input" or "strict-input" or "output" or "all"'),
        ("SELFAUG_REDUCTION", "mean", '"token" or "sequence"'),
        ("SELFAUG_CHUNK_SIZE", "0", 'a whole number > 0, or "auto"'),
        ("SELFAUG_CHUNK_SIZE", "1.5", 'a whole number > 0, or "auto"'),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_accepted_ones(name, value, accepted):
    with pytest.raises(config.SettingError) as error:
        config.read(None, {name: value})
    assert str(error.value) == f"{name} must be {accepted}, not {value!r}."


@pytest.mark.parametrize("value", [True, None, [0.5], "0.5x"])
def test_a_bad_alpha_in_the_models_config_is_an_error_too(value):
    with pytest.raises(config.SettingError, match=r'model\.config\.selfaug\["alpha"\] must be a number >= 0'):
        config.read(SimpleNamespace(selfaug={"alpha": value}), {})


def test_an_unknown_key_or_a_misspelt_variable_is_an_error():
    with pytest.raises(config.SettingError, match=r"unknown key 'apha'\. Accepted: enabled, alpha"):
        config.read(SimpleNamespace(selfaug={"apha": 1}), {})
    with pytest.raises(config.SettingError, match="must be a dict, not bool"):
        config.read(SimpleNamespace(selfaug=True), {})
    with pytest.raises(
        config.SettingError, match=r"SELFAUG_ALHPA is not a setting of SelfAug\. Did you mean SELFAUG_ALPHA\?"
    ):
        config.read(None, {"SELFAUG_ALHPA": "1"})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SELFAUG_ENABLED", "SELFAUG"),
        ("SELFAUG_ENABLE", "SELFAUG"),
        ("SELFAUG_EVALUATION", "SELFAUG_EVAL"),
        ("SELFAUG_REFERENCE_CACHE", "SELFAUG_CACHE"),
        ("SELFAUG_REFERENCE_CACHE_GB", "SELFAUG_CACHE_GB"),
        ("SELFAUG_CACHE_DB", "SELFAUG_CACHE_GB"),
    ],
)
def test_a_variable_with_the_name_of_the_dicts_key_is_told_its_own_name(name, meant):
    with pytest.raises(config.SettingError, match=rf"{name} is not a setting of SelfAug\. Did you mean {meant}\?"):
        config.read(None, {name: "1"})


def test_a_variable_that_resembles_no_setting_is_named_as_ignored():
    assert config.ignored({"SELFAUG_WARMUP": "x", "SELFAUGMENT": "1", "SELFAUG_ALPHA": "1"}) == ["SELFAUG_WARMUP"]


def test_a_run_names_the_variables_that_it_ignores(monkeypatch):
    monkeypatch.setattr(config, "ignored", lambda: ["SELFAUG_WARMUP"])
    assert announce._not_default(base(), config.Settings()).startswith(" Ignored, no setting: SELFAUG_WARMUP.")


def test_variables_of_other_tools_with_our_prefix_are_left_alone():
    assert config.read(None, {"SELFAUG_WHEEL_CACHE": "x", "SELFAUGMENT": "1"}) == config.Settings()


class Direction(str, enum.Enum):
    PAPER = "tuned-base"


class Place:
    """A path as a library may have its own."""

    def __fspath__(self):
        return "cache/here"

    def __str__(self):
        return "something else"


@pytest.mark.parametrize(
    ("key", "value", "plain"),
    [
        ("reference_cache", Path("cache") / "here", str(Path("cache") / "here")),
        ("reference_cache", Place(), "cache/here"),
        ("reference_cache", np.str_("cache"), "cache"),
        ("alpha", np.float32(0.25), 0.25),
        ("alpha", torch.tensor(0.25), 0.25),
        ("alpha", Fraction(1, 4), 0.25),
        ("sample", np.float64(0.5), 0.5),
        ("chunk_size", np.int64(64), 64),
        ("enabled", np.bool_(True), True),
        ("direction", Direction.PAPER, "tuned-base"),
        ("direction", np.str_("tuned-base"), "tuned-base"),
        ("reference_cache_gb", np.int32(3), 3.0),
    ],
)
def test_whatever_a_setting_is_given_as_it_can_be_saved_once_training_begins(tmp_path, key, value, plain):
    model, given = base(), {key: value, "strict": False}
    model.config.selfaug = given
    model.train()
    assert json.loads(model.config.to_json_string())["selfaug"] == {key: plain, "strict": False}
    assert getattr(config.read(model.config), key) == plain
    assert type(given[key]) is type(plain)  # the same dict: a callback may hold it
    given["alpha"] = 0.125
    assert config.read(model.config).alpha == 0.125
    model.save_pretrained(tmp_path)
    again = Qwen2ForCausalLM.from_pretrained(tmp_path)
    assert config.read(again.config) == config.read(model.config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reference_cache", ("a", "b")),
        ("reference_cache", b"cache"),
        ("reference_cache", torch.tensor(1)),
        ("alpha", (0.5,)),
        ("alpha", {0.5}),
        ("alpha", 10**400),
        ("alpha", torch.tensor([0.5, 0.5])),
        ("alpha", np.datetime64("2020")),
        ("chunk_size", torch.tensor(64)),
        ("chunk_size", (64,)),
        ("direction", np.array(["base-tuned"])),
        ("positions", ("input",)),
        ("enabled", torch.tensor(True)),
        ("strict", [True]),
        ("evaluation", object()),
    ],
)
def test_a_value_that_no_setting_can_be_is_refused_when_training_begins(key, value):
    model = base()
    model.config.selfaug = {key: value}
    with pytest.raises(config.SettingError, match=rf'model\.config\.selfaug\["{key}"\] must be'):
        model.train()
    model.eval()  # whoever does not train is left alone


def test_settings_that_are_no_dict_could_not_be_saved_and_are_refused():
    with pytest.raises(config.SettingError, match="must be a dict, not mappingproxy"):
        config.read(SimpleNamespace(selfaug=MappingProxyType({"alpha": 0.3})), {})


def test_a_callback_that_saves_the_config_before_the_first_step_can_do_so(tmp_path):
    """As that of TensorBoard does, which the Trainer adds by itself."""
    saved = []

    class Saves(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, **kwargs):
            saved.append(json.loads(model.config.to_json_string())["selfaug"])

    model = with_lora(base()).eval()
    data = batch()
    rows = [{name: value[row] for name, value in data.items()} for row in range(3)]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[Saves()])
    model.config.selfaug = {"reference_cache": tmp_path / "cache", "alpha": np.float32(0.25)}
    trainer.train()
    assert saved == [{"reference_cache": str(tmp_path / "cache"), "alpha": 0.25}]
    assert list((tmp_path / "cache").glob("*/*/*.ref"))
