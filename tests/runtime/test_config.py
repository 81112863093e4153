"""Settings come from three places, and a wrong one is named with what would be accepted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from selfaug import config


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


def test_variables_of_other_tools_with_our_prefix_are_left_alone():
    assert config.read(None, {"SELFAUG_WHEEL_CACHE": "x", "SELFAUGMENT": "1"}) == config.Settings()
