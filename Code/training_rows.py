"""Rows of a JSONL file as trained on, {"input_ids", "labels"}: tokenised as Code/examples/train_lora.py does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .labels import IGNORE_INDEX
from .toolkit import files, messages
from .toolkit.errors import Refusal
from .toolkit.tokens import bare, begun

ACCEPTED = "input_ids and labels, prompt and completion, or messages that end with the assistant's"
UNREAD = "neither the template nor the model would get it"


class RowError(ValueError):
    """A line that is no training row. The message has file and line, what was expected and what was found."""


def read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("FILE:LINE", row) of each line that is not blank, checked but for what only a tokenizer can tell.

    Raises:
        RowError: see there.
        OSError: the file cannot be read.
    """
    path.stat()
    try:
        for number, line in files.lines(path):
            yield f"{path}:{number}", _parse(line, f"{path}:{number}")
    except Refusal as refusal:
        wanted = f": expected {refusal.expected}" if refusal.expected else ""
        raise RowError(f"{refusal.what}{wanted}, found {refusal.found}") from None


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = files.parse_json(line)
    except json.JSONDecodeError as error:
        raise RowError(f"{where}: expected JSON, found {error}") from None
    except ValueError as error:
        raise RowError(f"{where}: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"{where}: expected {ACCEPTED}; found {type(row).__name__}")
    try:
        {"tokens": _check_tokens, "pair": _check_pair, "messages": _check_messages}[_form(row)](row)
    except ValueError as error:
        columns = ", ".join(row) or "none"
        raise RowError(f"{where}: expected {ACCEPTED}; found the columns {columns}, of another form: {error}") from None
    return row


def _form(row: dict[str, Any]) -> str:
    """By its columns, of which one decides, so that what is checked is what is read."""
    if "input_ids" in row:
        return "tokens"
    return "pair" if "prompt" in row else "messages"


def _check_tokens(row: dict[str, Any]) -> None:
    ids, labels = row.get("input_ids"), row.get("labels")
    if not (isinstance(ids, list) and isinstance(labels, list) and 0 < len(ids) == len(labels)):
        raise ValueError("input_ids and labels are not two lists of one length")
    for name, numbers, ignored in (("input_ids", ids, None), ("labels", labels, IGNORE_INDEX)):
        for index, number in enumerate(numbers):
            if type(number) is not int or not (0 <= number < 1 << 31 or number == ignored):
                raise ValueError(f"{name}[{index}] is {messages.shown(number)}, which is no token id")
    if row.get("attention_mask") not in (None, [1] * len(ids)):
        raise ValueError("attention_mask leaves tokens out: take them out of the row, and the mask")
    if row.get("position_ids") not in (None, list(range(len(ids)))):
        raise ValueError("position_ids do not count from 0: one row per document, without them")


def _check_pair(row: dict[str, Any]) -> None:
    for name in ("prompt", "completion"):
        messages.text(row.get(name), name)
    messages.refuse_columns(row, messages.READ_BY_MODEL, UNREAD)


def _check_messages(row: dict[str, Any]) -> None:
    turns = messages.checked(row.get("messages"), "messages")
    if turns[-1]["role"] != "assistant":
        raise ValueError(f"the last message is of role {turns[-1]['role']}")
    messages.refuse_columns(row, messages.READ_BY_MODEL, UNREAD)


def tokenised(row: dict[str, Any], where: str, tokenizer: Any, vocabulary: int | None = None) -> dict[str, list[int]]:
    """{"input_ids", "labels"}. ``tokenizer`` may be None for a row that has them; ``vocabulary``: the tokens that the
    model has.

    A prompt with completion is plain text, and begins as ``tokenizer(text)`` does (BOS); a chat template writes its
    own beginning.

    Raises:
        RowError: the chat template does not take the row, or renders its prompt otherwise once an answer follows; or
            the model has no such token.
    """
    form = _form(row)
    if form == "tokens":
        made = {name: row[name] for name in ("input_ids", "labels")}
    else:
        prompt, completion = _split(row, where, tokenizer)
        first = (begun if form == "pair" else bare)(tokenizer, prompt)
        rest = bare(tokenizer, completion)
        made = {"input_ids": first + rest, "labels": [IGNORE_INDEX] * len(first) + rest}
    most = max((*made["input_ids"], *made["labels"]), default=0)
    if vocabulary is not None and most >= vocabulary:
        raise RowError(f"{where}: expected token ids below {vocabulary}, as many as the model has; found {most}")
    return made


def _split(row: dict[str, Any], where: str, tokenizer: Any) -> tuple[str, str]:
    if _form(row) == "pair":
        if tokenizer.eos_token is None:
            raise RowError(f"{where}: the tokenizer has no EOS token, with which a completion ends. Give it one")
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
