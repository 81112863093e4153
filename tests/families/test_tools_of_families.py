"""Each tool once, with a model of each family: self-dialogues, the example script, and what an adapter has kept."""

from __future__ import annotations

import importlib
import json
import math

import chat_models
import pytest
import torch
import train_lora
from peft import PeftModel
from transformers import AutoModelForCausalLM

from selfaug.retention.__main__ import main as retention
from selfaug.self_dialogue import cli
from selfaug_patcher import families

TEXTS = ["say a word", "what is the name of the river"]


@pytest.fixture(params=families.MODELS, ids=lambda target: target.family)
def folder(request, tmp_path_factory):
    module = pytest.importorskip(request.param.module, reason="this transformers has no such family")
    cls = getattr(module, request.param.class_name)
    made = tmp_path_factory.mktemp("model")
    chat_models.save(cls, made)
    return made


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_every_tool_works(folder, tmp_path):
    talk = tmp_path / "dialogues.jsonl"
    options = ["--count", "2", "--batch", "3", "--user-tokens", "24", "--answer-tokens", "24", "--min-words", "1"]
    assert cli.main(["generate", "--model", str(folder), "--out", str(talk), *options, "--near", "off", "--device", "cpu"]) == 0
    rows = [json.loads(line) for line in talk.read_text().splitlines()]
    assert [[turn["role"] for turn in row["messages"]] for row in rows] == [["user", "assistant"]] * 2

    adapter = tmp_path / "adapter"
    common = ["--model", str(folder), "--data", str(talk), "--output", str(adapter), "--max-steps", "2", "--rank", "2"]
    train_lora.main([*common, "--batch-size", "2", "--lr", "1e-2", "--warmup-steps", "0"])
    history = json.loads((adapter / "trainer_state.json").read_text())["log_history"]
    assert all(math.isfinite(row["loss"]) for row in history if "loss" in row)
    first, second = (row["selfaug/kl"] for row in history if "loss" in row)
    assert first < 1e-6 < 1e-4 < second

    (tmp_path / "general.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    task = jsonl(tmp_path / "task.jsonl", [{"prompt": text, "answer": "yes"} for text in TEXTS])
    command = ["--base", str(folder), "--adapter", f"tuned={adapter}", "--general", str(tmp_path / "general.txt")]
    command += ["--task", str(task), "--answer-limit", "5", "--task-answer-limit", "4", "--device", "cpu"]
    assert retention([*command, "--out", str(tmp_path / "kept")]) == 0
    base, tuned = (json.loads((tmp_path / "kept" / "items" / f"{name}.json").read_text()) for name in ("base", "tuned"))
    for text, answer, drift in zip(TEXTS, base["general"], tuned["general"]):
        assert answer["ids"] == greedy(folder, prompt_of(text), 5)
        assert drift["kl"] == pytest.approx(kl(folder, adapter, prompt_of(text), answer["ids"]), rel=1e-3)


def prompt_of(text):
    reader = chat_models.tokenizer()
    rendered = reader.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
    return reader(rendered, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def greedy(folder, prompt, limit):
    """The likeliest tokens, each from a whole forward pass: no batch, no padding, no cache, no generation config."""
    model, ids = AutoModelForCausalLM.from_pretrained(folder).eval(), list(prompt)
    ends = {2, chat_models.tokenizer().convert_tokens_to_ids("<end>"), *model.generation_config.eos_token_id}
    while len(ids) < len(prompt) + limit and not (len(ids) > len(prompt) and ids[-1] in ends):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def kl(folder, adapter, prompt, answer):
    """Mean KL(base || tuned) in nats over the tokens of an answer, from two models."""
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for _ in range(2)]
    models[1] = PeftModel.from_pretrained(models[1], adapter).eval()
    log_q, log_p = (m(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1) for m in models)
    return float((log_q.exp() * (log_q - log_p)).sum(-1)[len(prompt) - 1 : -1].mean())
