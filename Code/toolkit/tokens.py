"""Plain text to token ids. A chat template writes the special tokens itself; plain text needs them added."""

from __future__ import annotations

from typing import Any


def begun(tokenizer: Any, text: str) -> list[int]:
    """Token ids of ``tokenizer(text)`` without the special tokens at the end (EOS), for a text that continues.

    A text that already begins with the special tokens of the beginning (BOS) does not get them twice.
    """
    ids, start = bare(tokenizer, text), beginning(tokenizer)
    return ids if ids[: len(start)] == start else [*start, *ids]


def beginning(tokenizer: Any) -> list[int]:
    """The special tokens that ``tokenizer(text)`` puts before any text. Most tokenizers put BOS there, or nothing."""
    whole, inner = list(tokenizer("a")["input_ids"]), bare(tokenizer, "a")
    for at in range(len(whole) - len(inner) + 1):
        if whole[at : at + len(inner)] == inner:
            return whole[:at]
    return []


def bare(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without any special token that the tokenizer would add."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
