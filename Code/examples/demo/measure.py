"""Measure a base model and its adapters: answers to the task, and drift on general instructions.

Run by the demo inside its own environment, on stock packages. Writes the figures of every single item, so that all that
follows (means, intervals, the plot) is arithmetic. Prints its progress as ``label: done/total``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import drift
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

TASK_ANSWER_LIMIT = 16
BATCH_SIZE = 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--instructions", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True, help="how many of the instructions")
    parser.add_argument("--answer-limit", type=int, default=96, help="tokens of an answer to an instruction")
    parser.add_argument("--task", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    adapters = dict(pair.split("=", 1) for pair in args.adapter)
    tokenizer, model = load(args.model, adapters)
    task = [json.loads(line) for line in args.task.read_text(encoding="utf-8").splitlines()]
    questions = [chat_ids(tokenizer, row["prompt"]) for row in task]
    general = pick(read_instructions(args.instructions), args.count)
    prompts = [chat_ids(tokenizer, instruction) for instruction in general]

    with model.disable_adapter():
        base_answers = generate(model, prompts, args.answer_limit, "base model, instructions")
        task_answers = generate(model, questions, TASK_ANSWER_LIMIT, "base model, task")
    exchanges = [drift.Exchange(prompt, answer) for prompt, answer in zip(prompts, base_answers)]
    models = {"base": describe(tokenizer, task_answers, base_answers)}
    for name in adapters:
        model.set_adapter(name)
        answers = generate(model, prompts, args.answer_limit, f"{name}, instructions")
        task_answers = generate(model, questions, TASK_ANSWER_LIMIT, f"{name}, task")
        models[name] = describe(tokenizer, task_answers, answers)
        models[name]["drift"] = drifts(model, exchanges, f"{name}, drift")
    figures = {"task": task, "instructions": general, "models": models}
    args.output.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def load(path: str, adapters: dict[str, str]) -> tuple[PreTrainedTokenizerBase, PeftModel]:
    """The tokenizer, and one set of base weights with every adapter on it."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    if model.config.model_type != "qwen2":
        raise SystemExit(f"expected a Qwen2 model, found {model.config.model_type!r} in {path}")
    end = tokenizer.eos_token_id
    # A model's own sampling defaults and penalties must not enter a greedy answer.
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=end, pad_token_id=end)
    first, *rest = adapters
    model = PeftModel.from_pretrained(model, adapters[first], adapter_name=first)
    for name in rest:
        model.load_adapter(adapters[name], adapter_name=name)
    return tokenizer, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def read_instructions(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pick(items: Sequence[str], count: int) -> list[str]:
    """``count`` items, spread evenly over the list."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def chat_ids(tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[int]:
    message = [{"role": "user", "content": instruction}]
    text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def generate(model: PeftModel, prompts: Sequence[list[int]], limit: int, label: str) -> list[list[int]]:
    """Greedy answers as token ids, up to and including the end-of-turn token, at most ``limit`` tokens."""
    end = model.generation_config.eos_token_id
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), BATCH_SIZE):
        print(f"{label}: {start}/{len(order)}", flush=True)
        batch = order[start : start + BATCH_SIZE]
        longest = max(len(prompts[index]) for index in batch)
        padding = [longest - len(prompts[index]) for index in batch]
        input_ids = torch.tensor([[end] * pad + prompts[index] for index, pad in zip(batch, padding)])  # (B, T)
        attention_mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        output = model.generate(
            input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device), max_new_tokens=limit
        )
        for index, row in zip(batch, output[:, longest:].tolist()):
            answers[index] = row[: row.index(end) + 1] if end in row else row
    print(f"{label}: {len(order)}/{len(order)}", flush=True)
    return answers


def drifts(model: PeftModel, exchanges: Sequence[drift.Exchange], label: str) -> list[dict]:
    rows: dict[int, dict] = {}
    for index, figures in drift.measure(model, exchanges):
        rows[index] = asdict(figures)
        print(f"{label}: {len(rows)}/{len(exchanges)}", flush=True)
    return [rows[index] for index in range(len(exchanges))]


def describe(tokenizer: PreTrainedTokenizerBase, task: list[list[int]], instructions: list[list[int]]) -> dict:
    """What a model said: its answers as text, and how long those to the instructions were, in tokens."""
    said = {"task": task, "instructions": instructions}
    described: dict = {key: tokenizer.batch_decode(ids, skip_special_tokens=True) for key, ids in said.items()}
    described["lengths"] = [len(ids) for ids in instructions]
    return described


if __name__ == "__main__":
    main()
