"""A tiny chat model that was trained for a second on a handful of dialogues, and its tokenizer: no downloads."""

from __future__ import annotations

import random
import re

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {% endif %}{% endfor %}"
)
NAMES = "ada bob cleo dan eve finn gus hal".split()
THINGS = "bread rain stone fire wood glass salt ink".split()
WORD = r" ?\w+| ?[^\w\s]+|\n| "
PLACES = "the north side of the river|a small old town|the house on the hill|the last train home".split("|")


def dialogues():
    for name in NAMES:
        for thing in THINGS:
            place = PLACES[(NAMES.index(name) + THINGS.index(thing)) % len(PLACES)]
            question = f"where does {name} keep the {thing} now?"
            yield [
                {"role": "user", "content": question},
                {"role": "assistant", "content": f"{name} keeps the {thing} in {place}, as far as i know."},
            ]


def tokenizer(template=CHATML):
    """Whole words, each with the space before it."""
    text = "\n system assistant user User: Assistant: [INST] [/INST]"
    text += " ".join(turn["content"] for turns in dialogues() for turn in turns)
    pieces = sorted({piece for word in re.findall(WORD, text) for piece in (word.strip(" "), " " + word.strip(" "))})
    vocabulary = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", " ", *pieces]
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), "isolated")
    backend.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = template
    return fast


def model(steps=0):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    made = LlamaForCausalLM(config)
    if steps:
        _train(made, steps)
    return made.eval()


def _train(made, steps):
    reader = tokenizer()
    every = list(dialogues())
    rng = random.Random(0)
    optimiser = torch.optim.AdamW(made.parameters(), lr=1e-2)
    made.train()
    for step in range(steps):
        texts = [
            reader.apply_chat_template([turn for turns in rng.sample(every, 3) for turn in turns], tokenize=False)
            for _ in range(8)
        ]
        batch = reader(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        made(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimiser.step()
        optimiser.zero_grad()
