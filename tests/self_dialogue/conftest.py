"""A folder with a tiny chat model, made once, and the command line as a function."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    import tiny_chat

    folder = tmp_path_factory.mktemp("chat")
    tiny_chat.model(steps=80).save_pretrained(folder)
    tiny_chat.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def generate(chat_model, tmp_path):
    """Run `generate` on the tiny model; the output's path. The rest are further options."""
    from selfaug.self_dialogue import cli

    def run(*options, out="out.jsonl", status=0):
        base = [
            "generate",
            "--model",
            str(chat_model),
            "--out",
            str(tmp_path / out),
            "--device",
            "cpu",
            "--near",
            "off",
        ]
        base += ["--batch", "4", "--user-tokens", "24", "--answer-tokens", "40"]
        assert cli.main([*base, *options]) == status
        return tmp_path / out

    return run


@pytest.fixture
def jsonl(tmp_path):
    def write(name, rows):
        file = tmp_path / name
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return file

    return write


@pytest.fixture
def read():
    return lambda file: [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
