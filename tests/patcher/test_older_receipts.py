"""An environment that an earlier SelfAug patched: read, upgraded, and reverted to the very bytes and times."""

from __future__ import annotations

import older
import pytest
from stand_ins import MODEL_TEXT

from selfaug_patcher import families, pins

STOCK = MODEL_TEXT.format(version="2.0", family="qwen2", stem="Qwen2", name="Qwen2ForCausalLM")
OLD_MODEL = STOCK.replace("(Qwen2Config):", "(SelfAligned, Qwen2Config):  # by a diff")
RUNTIME = {"__init__.py": b'__version__ = "0.1.0"\n', "hooks.py": b"class SelfAligned:\n    release = 'older'\n"}


@pytest.fixture
def patched_before(place):
    """A function that patches as an earlier SelfAug did, and gives the snapshot from before."""
    before = place.snapshot()

    def patch(model: bytes | None = None, layer: bytes | None = None):
        table = pins.load(place.selfaug.patches)
        contents = {
            "transformers:qwen2": model or table.patched(families.MODELS[0], place.model.read_bytes()),
            "peft:lora": layer or table.patched(families.LAYER, place.layer.read_bytes()),
        }
        older.install(place.site, {"transformers": "2.0", "peft": "2.0"}, contents, RUNTIME)
        return before

    return patch


def test_todays_bytes_with_an_earlier_receipt_are_patched_and_reverted(place, patched_before):
    before = patched_before()
    assert place.states() == ("patched", "patched", "older")
    place.done("revert")
    assert place.snapshot() == before


def test_other_bytes_with_an_earlier_receipt_are_reverted(place, patched_before):
    before = patched_before(OLD_MODEL.encode(), older.with_switch(place.layer.read_bytes()))
    assert "patched by an older SelfAug" in place.run("status").out
    place.done("revert")
    assert place.snapshot() == before


def test_other_bytes_with_an_earlier_receipt_are_upgraded_and_then_reverted(place, patched_before):
    before = patched_before(OLD_MODEL.encode(), older.with_switch(place.layer.read_bytes()))
    place.done("install")
    assert place.states() == ("patched", "patched", "installed")
    assert "class LoraLayer(ReferenceSwitch, BaseTunerLayer):" in place.layer.read_text()
    place.done("revert")
    assert place.snapshot() == before
