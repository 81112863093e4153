"""Pairs that fail with stock files are told, each with a release to take that is pinned and is no bad pair itself."""

from __future__ import annotations

import re

import pytest
from packaging.version import Version
from releases import TABLE

from selfaug_patcher.pairs import warnings

QWEN2, LORA = "transformers:qwen2", "peft:lora"


@pytest.mark.parametrize(
    ("transformers", "peft", "words"),
    [
        pytest.param("4.42.4", "0.14.0", "EncoderDecoderCache", id="peft 0.14 below 4.43"),
        pytest.param("4.37.2", "0.21.2", "EncoderDecoderCache", id="newest peft on the oldest transformers"),
        pytest.param("4.43.4", "0.17.1", "HybridCache", id="peft 0.17 below 4.44"),
        pytest.param("5.0.0rc3", "0.16.0", "HybridCache", id="peft 0.16 on the release candidate that drops it"),
        pytest.param("5.23.0", "0.17.1", "HybridCache", id="peft 0.17 on 5"),
        pytest.param("4.51.3", "0.18.0", "modeling_layers", id="peft 0.18.0 below 4.52"),
        pytest.param("4.46.3", "0.21.2", "torch.distributed.tensor", id="peft 0.21 on 4.46"),
        pytest.param("4.43.1", "0.18.1", "torch.distributed.tensor", id="peft 0.18.1 on 4.43"),
        pytest.param("5.0.0rc0", "0.6.2", "PeftMixedModel", id="peft 0.6 on 5"),
        pytest.param("5.0.0rc3", "0.19.0", "names that 5.0.0 added", id="peft 0.19 on a candidate of 5"),
        pytest.param("4.42.0", None, "numpy 2", id="4.42 and numpy 2, no peft"),
    ],
)
def test_a_known_bad_pair_is_told(transformers, peft, words):
    assert any(words in warning and transformers in warning for warning in warnings(transformers, peft))


@pytest.mark.parametrize(
    ("transformers", "peft"),
    [
        ("5.23.0", "0.21.2"), ("4.57.6", "0.18.1"), ("4.51.3", "0.15.2"), ("4.40.2", "0.10.0"), ("4.43.0", "0.14.0"),
        ("4.44.0", "0.17.1"), ("5.0.0rc2", "0.17.1"), ("4.57.6", "0.16.0"), ("4.52.0", "0.18.0"), ("4.51.3", "0.18.1"),
        ("4.47.0", "0.21.2"), ("4.37.0", "0.6.0"), ("4.57.6", "0.6.0"), ("5.0.0", "0.19.0"), ("5.23.0", "0.7.0"),
        ("4.46.3", "0.17.1"), ("5.23.0", None),
        ("of our own", "0.17.1"), ("5.23.0", "of our own"),
    ],
)  # fmt: skip
def test_nothing_is_said_about_other_pairs(transformers, peft):
    assert warnings(transformers, peft) == []


def test_the_release_to_take_is_pinned_and_good():
    seen = 0
    for transformers in (pin for pin in TABLE.of(QWEN2) if pin.version.endswith((".0", "rc2", "rc3"))):
        for peft in TABLE.of(LORA):
            told = warnings(transformers.version, peft.version)
            for warning in told:
                advised = dict(re.findall(r'"(transformers|peft)==([^"]+)"', warning))
                assert advised
                for package, version in advised.items():
                    assert TABLE.by_version(QWEN2 if package == "transformers" else LORA, version)
                    pair = {"transformers": transformers.version, "peft": peft.version, package: version}
                    left = warnings(pair["transformers"], pair["peft"])
                    assert set(left) <= set(told) - {warning}  # nothing new, and not the same again
                seen += 1
    assert seen > 200


def test_the_advice_goes_the_short_way():
    """The pip command lowers peft where transformers is old, and does not ask for an older one where it is new."""
    (warning,) = warnings("5.23.0", "0.17.1")
    assert Version(re.search(r"peft==([\d.]+)", warning)[1]) > Version("0.17.1")
