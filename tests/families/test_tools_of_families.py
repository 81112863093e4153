"""Each tool once, with a model of each family: self-dialogues, the example script, and what an adapter has kept."""

from __future__ import annotations

import json
import math

import chat_models
import pytest
import torch
import train_lora
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug.retention.__main__ import main as retention
from selfaug.self_dialogue import cli
from selfaug_patcher import families

TEXTS = ["say a word", "what is the name of the river"]


# those that AutoModelForCausalLM loads
TEXT_MODELS = [target for target in families.MODELS if target.class_name.endswith("ForCausalLM")]
# the layers for LoRA, where peft does not take every linear one
LAYERS = {"nemotron_h": ["--layers", r".*\.[qkvo]_proj"]}


@pytest.fixture(params=TEXT_MODELS, ids=lambda target: target.family)
def family(request):
    return request.param


@pytest.fixture
def folder(family, tmp_path_factory):
    """A model of the family."""
    module = pytest.importorskip(family.module, reason="this transformers has no such family")
    cls = getattr(module, family.class_name)
    made = tmp_path_factory.mktemp("model")
    chat_models.save(cls, made)
    return made


def jsonl(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_every_tool_works(family, folder, tmp_path):
    talk = tmp_path / "dialogues.jsonl"
    command = [
        "generate",
        "--model",
        str(folder),
        "--out",
        str(talk),
        "--count",
        "2",
        "--batch",
        "3",
        "--device",
        "cpu",
    ]
    command += ["--user-tokens", "24", "--answer-tokens", "24", "--temperature", "10", "--min-words", "1"]
    assert cli.main([*command, "--near", "off"]) == 0
    rows = [json.loads(line) for line in talk.read_text().splitlines()]
    assert [[turn["role"] for turn in row["messages"]] for row in rows] == [["user", "assistant"]] * 2

    adapter = tmp_path / "adapter"
    common = ["--model", str(folder), "--data", str(talk), "--output", str(adapter), "--max-steps", "2", "--rank", "2"]
    common += LAYERS.get(family.family, [])
    train_lora.main([*common, "--batch-size", "2", "--lr", "1e-2", "--warmup-steps", "0"])
    history = json.loads((adapter / "trainer_state.json").read_text())["log_history"]
    assert all(math.isfinite(row["loss"]) for row in history if "loss" in row)
    first, second = (row["selfaug/kl"] for row in history if "loss" in row)
    assert first < 1e-6 < 1e-5 < second

    (tmp_path / "general.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    task = jsonl(tmp_path / "task.jsonl", [{"prompt": text, "answer": "yes"} for text in TEXTS])
    command = ["--base", str(folder), "--adapter", f"tuned={adapter}", "--general", str(tmp_path / "general.txt")]
    command += ["--task", str(task), "--answer-limit", "5", "--task-answer-limit", "4", "--device", "cpu"]
    assert retention([*command, "--out", str(tmp_path / "kept")]) == 0
    base, tuned = (json.loads((tmp_path / "kept" / "items" / f"{name}.json").read_text()) for name in ("base", "tuned"))
    reader, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = [prompt_of(reader, text) for text in TEXTS]
    assert [answer["ids"] for answer in base["general"]] == [greedy(model, reader, prompt, 5) for prompt in prompts]
    wanted = kls(model, adapter, prompts, [answer["ids"] for answer in base["general"]])
    assert [drift["kl"] for drift in tuned["general"]] == pytest.approx(wanted, rel=1e-3, abs=1e-7)


def prompt_of(reader, text):
    asked = [{"role": "user", "content": text}]
    rendered = reader.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    return reader(rendered, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def greedy(model, reader, prompt, limit):
    """The likeliest tokens, each from a whole forward pass: no batch, no padding, no cache, no generation config."""
    ids, ends = list(prompt), {reader.convert_tokens_to_ids("<end>"), *model.generation_config.eos_token_id}
    while len(ids) < len(prompt) + limit and not (len(ids) > len(prompt) and ids[-1] in ends):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def kls(model, adapter, prompts, answers):
    """Mean KL(base || tuned) in nats over the tokens of each answer. The model gets the adapter on the way."""
    rows = [torch.tensor([prompt + answer]) for prompt, answer in zip(prompts, answers)]
    reference = [model(input_ids=row).logits[0].double().log_softmax(-1) for row in rows]
    tuned = PeftModel.from_pretrained(model, adapter).eval()
    logs = [tuned(input_ids=row).logits[0].double().log_softmax(-1) for row in rows]
    kl = [(log_q.exp() * (log_q - log_p)).sum(-1) for log_q, log_p in zip(reference, logs)]
    return [float(each[len(prompt) - 1 : -1].mean()) for each, prompt in zip(kl, prompts)]
