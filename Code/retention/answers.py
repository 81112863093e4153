"""Greedy answers, as token ids and as text, and their shape: does an answer hold a list, is an answer one word?

Fine-tuning on short answers changes the shape first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..toolkit.chat import Ending

_ITEM = re.compile(r"^[ \t]*(?:[-*+\u2022\u2013]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])[ \t]+\S", re.MULTILINE)
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """``ids`` include the tokens that ended the answer. ``text`` has no special tokens."""

    ids: list[int]
    text: str
    ended: bool


@torch.inference_mode()
def greedy(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], limit: int, ending: Ending, batch_size: int,
    progress: Progress,
) -> list[Answer]:  # fmt: skip
    """An answer of at most ``limit`` tokens to each prompt, in the order of the prompts.

    Args:
        model: a causal language model in eval mode, with or without an adapter. Its generation config asks for greedy
            search.
        prompts: token ids. Short prompts are answered first, which saves padding.
        ending: what ends an answer.
        progress: receives the number of answers so far.
    """
    answers: dict[int, Answer] = {}
    pad = ending.tokens[0] if ending.tokens else 0
    strings = {"stop_strings": list(ending.strings), "tokenizer": tokenizer} if ending.strings else {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        progress(start)
        batch = order[start : start + batch_size]
        longest = max(len(prompts[index]) for index in batch)
        padding = [longest - len(prompts[index]) for index in batch]
        input_ids = torch.tensor([[pad] * short + prompts[index] for index, short in zip(batch, padding)])  # (B, T)
        attention_mask = torch.tensor([[0] * short + [1] * (longest - short) for short in padding])
        output = model.generate(
            input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device),
            max_new_tokens=limit, **strings,
        )  # fmt: skip
        for index, row in zip(batch, output[:, longest:].tolist()):
            answers[index] = _answer(tokenizer, row, ending)
    progress(len(order))
    return [answers[index] for index in range(len(prompts))]


def _answer(tokenizer: Any, row: list[int], ending: Ending) -> Answer:
    end = next((at for at, token in enumerate(row) if token in ending.tokens), None)
    ids = row if end is None else row[: end + 1]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    ends = [text.find(string) for string in ending.strings if string in text]
    if ends:
        text = text[: min(ends)]
        ids = next(ids[:n] for n in range(1, len(ids) + 1) if _holds(tokenizer.decode(ids[:n]), ending.strings))
    return Answer(ids, text, end is not None or bool(ends))


def _holds(text: str, strings: Sequence[str]) -> bool:
    return any(string in text for string in strings)


def has_list(text: str) -> bool:
    """Whether at least two lines begin with a bullet, a number or a letter."""
    return len(_ITEM.findall(text)) >= 2


def one_word(text: str) -> bool:
    """Whether the text has at most one word. An empty answer counts, too."""
    return len(text.split()) <= 1
