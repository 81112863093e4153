"""A plain text as a tokenizer reads it. Chat templates write their own special tokens; a plain text has none yet."""

from __future__ import annotations

from typing import Any


def begun(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that goes on: what ``tokenizer(text)`` gives, but for what it puts at the end (EOS).

    A text that begins with the tokenizer's beginning (BOS) already gets no second one.
    """
    ids, start = bare(tokenizer, text), beginning(tokenizer)
    return ids if ids[: len(start)] == start else [*start, *ids]


def beginning(tokenizer: Any) -> list[int]:
    """The special tokens that ``tokenizer(text)`` puts before any text; most tokenizers: BOS, or none."""
    whole, inner = list(tokenizer("a")["input_ids"]), bare(tokenizer, "a")
    for at in range(len(whole) - len(inner) + 1):
        if whole[at : at + len(inner)] == inner:
            return whole[:at]
    return []


def bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
