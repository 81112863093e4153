"""Fine-tune a chat model with LoRA on a JSONL file: an ordinary Hugging Face Trainer script.

    python train_lora.py --model Qwen/Qwen2.5-0.5B-Instruct --data train.jsonl --output adapter

Each line of the file is one sample, either of

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"prompt": "…", "completion": "…"}

Only the last assistant message, or the completion, is trained on. Everything before is input (label -100).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
import transformers
from packaging.version import Version
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed

IGNORE_INDEX = -100


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="name on the hub, or a folder")
    parser.add_argument("--data", required=True, help="JSONL file")
    parser.add_argument("--output", required=True, help="folder for the adapter, or for the whole model")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--max-steps", type=int, default=-1, help="stop after this many steps, whatever --epochs says")
    parser.add_argument("--batch-size", type=int, default=8, help="samples per device and forward pass")
    parser.add_argument("--grad-accum", type=int, default=1, help="forward passes per optimiser step")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--warmup-steps", type=int, default=3)
    parser.add_argument(
        "--rank", type=int, default=16, help="LoRA rank; lora_alpha is twice that. 0: no LoRA, all weights train"
    )
    parser.add_argument(
        "--layers", default="all-linear", help="layers that get LoRA: a regular expression for their whole names "
        "(default: every linear layer but the head)",
    )  # fmt: skip
    parser.add_argument("--dropout", type=float, default=0.0, help="LoRA dropout")
    parser.add_argument("--max-length", type=int, default=2048, help="longer samples are left out")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the frozen weights")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--logging-steps", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def split(row: dict[str, Any], tokenizer: Any) -> tuple[str, str]:
    """The prompt and the completion of a row, as text."""
    if "prompt" in row:
        return row["prompt"], row["completion"] + tokenizer.eos_token
    *context, answer = row["messages"]
    prompt = tokenizer.apply_chat_template(context, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*context, answer], tokenize=False)
    if not whole.startswith(prompt):
        raise ValueError(
            "the chat template renders the prompt otherwise once an answer follows: use prompt/completion rows"
        )
    return prompt, whole[len(prompt) :].rstrip("\n")


def beginning(tokenizer: Any) -> list[int]:
    """The special tokens that the tokenizer puts before a text."""
    whole, inner = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    return next(list(whole[:at]) for at in range(len(whole)) if whole[at : at + len(inner)] == inner)


def load_samples(path: str, tokenizer: Any, max_length: int) -> list[dict[str, list[int]]]:
    """Tokenised samples with labels; samples longer than ``max_length`` are left out."""
    samples = []
    with open(path, encoding="utf-8-sig") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    for row in rows:
        if "input_ids" in row:  # tokenised already, such as `self_dialogue mix --anchors` writes them
            if len(row["input_ids"]) <= max_length:
                samples.append({name: row[name] for name in ("input_ids", "labels")})
            continue
        prompt, completion = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in split(row, tokenizer))
        if "prompt" in row:  # plain text needs the tokenizer's BOS; a chat template writes its own
            start = beginning(tokenizer)
            prompt = prompt if prompt[: len(start)] == start else start + prompt
        if len(prompt) + len(completion) <= max_length:
            samples.append({"input_ids": prompt + completion, "labels": [IGNORE_INDEX] * len(prompt) + completion})
    if len(samples) < len(rows):
        print(f"left out {len(rows) - len(samples)} of {len(rows)} samples: longer than {max_length} tokens")
    return samples


def make_collator(pad_token_id: int) -> Callable[[list[dict[str, list[int]]]], dict[str, torch.Tensor]]:
    """A collator that pads to the longest sample of the batch, on the right."""

    def collate(samples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(sample["input_ids"]) for sample in samples)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for sample in samples:
            length, padding = len(sample["input_ids"]), longest - len(sample["input_ids"])
            batch["input_ids"].append(sample["input_ids"] + [pad_token_id] * padding)
            batch["labels"].append(sample["labels"] + [IGNORE_INDEX] * padding)
            batch["attention_mask"].append([1] * length + [0] * padding)
        return {name: torch.tensor(rows) for name, rows in batch.items()}

    return collate


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    set_seed(args.seed)

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    dtype = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    model: Any = AutoModelForCausalLM.from_pretrained(args.model, **{dtype: getattr(torch, args.dtype)})
    if args.gradient_checkpointing:
        model.config.use_cache = False
        model.enable_input_require_grads()
    if args.rank:
        config = LoraConfig(
            r=args.rank,
            lora_alpha=2 * args.rank,
            lora_dropout=args.dropout,
            target_modules=args.layers,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
        model.print_trainable_parameters()

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=args.output,
            num_train_epochs=args.epochs,
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            gradient_accumulation_steps=args.grad_accum,
            learning_rate=args.lr,
            warmup_steps=args.warmup_steps,
            logging_steps=args.logging_steps,
            bf16=args.dtype == "bfloat16" and torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            seed=args.seed,
            gradient_checkpointing=args.gradient_checkpointing,
        ),
        train_dataset=load_samples(args.data, tokenizer, args.max_length),
        data_collator=make_collator(
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        ),
    )
    trainer.train()
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    trainer.save_state()


if __name__ == "__main__":
    main()
