"""The trial of several model classes in one process."""

from __future__ import annotations

import pytest


def test_each_hash_of_several_classes_has_a_name_of_its_own():
    """By which `verify` compares it with stock's; with one name for two classes it would compare one with the other."""
    pytest.importorskip("transformers.models.qwen3")
    from selfaug.trial.__main__ import QWEN2, hashes

    found = list(hashes([QWEN2, QWEN2.replace("qwen2", "qwen3").replace("Qwen2", "Qwen3")]))
    assert len({line["case"] for line in found}) == len(found) > 20
