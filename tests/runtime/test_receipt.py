"""What a run says of a release that nobody has pinned."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers
from tiny import base, batch, with_lora

from selfaug import __version__, config, receipt
from selfaug.trainers import announce

VERSION, LAYER = transformers.__version__, peft.__version__


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Writes a receipt beside both packages."""
    monkeypatch.delenv("_SELFAUG_RUN", raising=False)
    for package in (transformers, peft):
        monkeypatch.setattr(package, "__file__", str(tmp_path / package.__name__ / "__init__.py"))

    def write(**targets):
        (tmp_path / ".selfaug").mkdir(exist_ok=True)
        named = {name.replace("_", ":"): entry for name, entry in targets.items()}
        (tmp_path / ".selfaug" / "receipt.json").write_text(json.dumps({"targets": named}))

    return write


PROVED = {"version": "1", "proved": {"torch": "2"}}


def releases(model, layer):
    proved = f", with torch {torch.__version__}" if "proved here" in (model, layer) else ""
    return f" SelfAug {__version__}, qwen2 of transformers {VERSION} ({model}), peft {LAYER} ({layer}){proved}."


def first_line(monkeypatch):
    for name in config.ignored():  # such as those of the tests themselves
        monkeypatch.delenv(name)
    said = []
    monkeypatch.setattr(announce.logger, "warning", said.append)
    model = with_lora(base(), perturbed=False)
    model(**batch()).loss.backward()
    return said[0]


@pytest.mark.parametrize(
    ("targets", "model", "layer"),
    [
        ({"transformers_qwen2": {"version": "1"}, "peft_lora": {"version": "1"}}, "pinned", "pinned"),
        ({"transformers_qwen2": PROVED, "peft_lora": {"version": "1"}}, "proved here", "pinned"),
        ({"transformers_llama": PROVED, "peft_lora": PROVED}, "pinned", "proved here"),
        ({"transformers_qwen2": PROVED, "peft_lora": PROVED}, "proved here", "proved here"),
    ],
)
def test_the_first_line_names_releases_family_and_trust(record, monkeypatch, targets, model, layer):
    record(**targets)
    assert first_line(monkeypatch).endswith(releases(model, layer))


def test_the_first_line_of_run_says_it_too(record, monkeypatch):
    trust = {"transformers:qwen2": "proved here", "peft:lora": "pinned"}
    monkeypatch.setenv("_SELFAUG_RUN", json.dumps({"trust": trust}))
    assert first_line(monkeypatch).endswith(releases("proved here", "pinned"))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"targets": 1}', '{"targets": {"peft:lora": 1}}'])
def test_a_receipt_that_cannot_be_read_says_nothing(record, tmp_path, text):
    record()
    (tmp_path / ".selfaug" / "receipt.json").write_text(text)
    assert receipt.entry("peft:lora") == {}
    assert not receipt.is_proved_here("peft:lora")
