"""Rows of a JSONL file as trained on, {"input_ids", "labels"}: tokenised as Code/examples/train_lora.py does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .positions import IGNORE_INDEX

ACCEPTED = "input_ids and labels, prompt and completion, or messages that end with the assistant's"


class RowError(ValueError):
    """A line that is no training row. The message has file and line, what was expected and what was found."""


def read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE:LINE", row) of each line that is not blank, checked but for what only a tokenizer can tell.

    Raises:
        RowError: see there.
        OSError: the file cannot be read.
    """
    with path.open(encoding="utf-8-sig") as lines:  # by its line ends: strings may hold what splitlines() splits at
        try:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path}:{number}", _parse(line, f"{path}:{number}")
        except UnicodeDecodeError as error:
            raise RowError(f"{path}: expected UTF-8, found {error}") from None


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise RowError(f"{where}: expected JSON, found {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"{where}: expected {ACCEPTED}; found {type(row).__name__}")
    if not (_are_tokens(row) or _is_pair(row) or _are_messages(row)):
        raise RowError(f"{where}: expected {ACCEPTED}; found the columns {', '.join(row) or 'none'}, of another form")
    return row


def _are_tokens(row: dict[str, Any]) -> bool:
    ids, labels = row.get("input_ids"), row.get("labels")
    if not (isinstance(ids, list) and isinstance(labels, list) and 0 < len(ids) == len(labels)):
        return False
    return all(type(number) is int for number in (*ids, *labels))


def _is_pair(row: dict[str, Any]) -> bool:
    return isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)


def _are_messages(row: dict[str, Any]) -> bool:
    messages = row.get("messages")
    if not (isinstance(messages, list) and messages and all(isinstance(one, dict) for one in messages)):
        return False
    return messages[-1].get("role") == "assistant"


def tokenised(row: dict[str, Any], where: str, tokenizer: Any) -> dict[str, list[int]]:
    """{"input_ids", "labels"}. ``tokenizer`` may be None for a row that has them.

    Raises:
        RowError: the chat template does not take the row, or renders its prompt otherwise once an answer follows.
    """
    if "input_ids" in row and "labels" in row:
        return {name: row[name] for name in ("input_ids", "labels")}
    prompt, completion = _split(row, where, tokenizer)
    first, rest = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, completion))
    return {"input_ids": first + rest, "labels": [IGNORE_INDEX] * len(first) + rest}


def _split(row: dict[str, Any], where: str, tokenizer: Any) -> tuple[str, str]:
    if "prompt" in row:
        return row["prompt"], row["completion"] + tokenizer.eos_token
    *context, answer = row["messages"]
    try:
        prompt = tokenizer.apply_chat_template(context, tokenize=False, add_generation_prompt=True)
        whole = tokenizer.apply_chat_template([*context, answer], tokenize=False)
    except Exception as error:  # whatever a template raises
        raise RowError(f"{where}: the chat template does not take these messages: {error}") from None
    if not whole.startswith(prompt):
        raise RowError(f"{where}: the chat template renders the prompt otherwise once an answer follows: use prompt "
                       "and completion")  # fmt: skip
    return prompt, whole[len(prompt) :].rstrip("\n")
