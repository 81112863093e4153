"""Training rows, from any file that the toolkit reads, and tokenised to {"input_ids", "labels"} in the same way as
Code/examples/train_lora.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import messages, rows
from .errors import Refusal
from .tokens import bare, begun

IGNORE_INDEX = -100  # the label of a token that no loss trains; the runtime's own is in labels.py
ACCEPTED = "input_ids and labels, prompt and completion, or messages that end with the assistant's"
UNREAD = "neither the template nor the model would get it"


class RowError(ValueError):
    """A line that is not a training row. The message has file and line, what was expected and what was found."""


def read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("FILE:LINE", row) for each row of a file. A file with an unknown suffix is read as JSONL. Everything is
    checked that can be checked without a tokenizer.

    Raises:
        RowError: a row is malformed, or the file is not UTF-8.
        OSError: the file cannot be read.
    """
    path.stat()
    try:
        for line, row in rows.rows(path, jsonl_by_default=True):
            check(row, f"{path}:{line}")
            yield f"{path}:{line}", row
    except Refusal as refusal:
        expected = f": expected {refusal.expected}" if refusal.expected else ""
        found = f", found {refusal.found}" if refusal.found else ""
        raise RowError(f"{refusal.what}{expected}{found}") from None


def check(row: dict[str, Any], where: str) -> None:
    """Check all that can be checked without a tokenizer.

    Raises:
        RowError: the row is malformed.
    """
    try:
        {"tokens": _check_tokens, "pair": _check_pair, "messages": _check_messages}[_kind(row)](row)
    except ValueError as error:
        columns = ", ".join(row) or "none"
        raise RowError(f"{where}: expected {ACCEPTED}; found the columns {columns}, of another form: {error}") from None


def _kind(row: dict[str, Any]) -> str:
    """tokens, pair or messages. A single column decides, so that the columns that are checked are the columns that are
    used.
    """
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
        raise ValueError("attention_mask leaves tokens out: remove the tokens from the row, and the mask")
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


def tokenised(
    row: dict[str, Any], where: str, tokenizer: Any, vocabulary: int | None = None, plain: bool = False
) -> dict[str, list[int]]:
    """A row as {"input_ids", "labels"}.

    A prompt with a completion is plain text and gets the tokenizer's BOS and EOS; a chat template writes both itself.

    Args:
        row: a row from :func:`read`.
        where: FILE:LINE of the row, for errors.
        tokenizer: may be None for a row that holds token ids.
        vocabulary: the number of tokens that the model has; None does not check token ids.
        plain: the tokenizer has the plain template of :mod:`.chat`, which writes plain text.

    Raises:
        RowError: the tokenizer has no EOS token, the chat template fails on the row or renders the prompt differently
            once an answer follows, or the model does not have a token.
    """
    kind = _kind(row)
    if kind == "tokens":
        sample = {name: row[name] for name in ("input_ids", "labels")}
    else:
        prompt, completion = _split(row, where, tokenizer, plain)
        first = (begun if plain or kind == "pair" else bare)(tokenizer, prompt)
        rest = bare(tokenizer, completion)
        sample = {"input_ids": first + rest, "labels": [IGNORE_INDEX] * len(first) + rest}
    highest = max((*sample["input_ids"], *sample["labels"]), default=0)
    if vocabulary is not None and highest >= vocabulary:
        raise RowError(f"{where}: expected token ids below {vocabulary}, as many as the model has; found {highest}")
    return sample


def unlabelled(messages: list[dict[str, Any]], where: str, tokenizer: Any, plain: bool = False) -> dict[str, list[int]]:
    """A conversation as {"input_ids", "labels"} without any label: SelfAug's anchor. ``plain``: as in
    :func:`tokenised`.

    Raises:
        RowError: the chat template fails on it, or a plain text has no EOS token to end with.
    """
    text = _rendered(messages, where, tokenizer, plain)
    ids = begun(tokenizer, text + _eos(where, tokenizer)) if plain else bare(tokenizer, text)
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * len(ids)}


def _eos(where: str, tokenizer: Any) -> str:
    """What a plain text ends with."""
    if tokenizer.eos_token is None:
        raise RowError(f"{where}: the tokenizer has no EOS token, with which a completion ends. Give it one")
    return str(tokenizer.eos_token)


def _split(row: dict[str, Any], where: str, tokenizer: Any, plain: bool) -> tuple[str, str]:
    if _kind(row) == "pair":
        return row["prompt"], row["completion"] + _eos(where, tokenizer)
    *context, answer = row["messages"]
    prompt = _rendered(context, where, tokenizer, plain, add_generation_prompt=True)
    whole = _rendered([*context, answer], where, tokenizer, plain)
    if not whole.startswith(prompt):
        raise RowError(f"{where}: the chat template renders the prompt otherwise once an answer follows: use prompt "
                       "and completion")  # fmt: skip
    completion = whole[len(prompt) :]
    return prompt, completion + _eos(where, tokenizer) if plain else completion.rstrip("\n")


def _rendered(turns: list[dict[str, Any]], where: str, tokenizer: Any, plain: bool, **options: Any) -> str:
    try:
        if plain:
            messages.check_plain(turns)
        text: str = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception as error:  # a template may raise any error
        raise RowError(f"{where}: the chat template does not take these messages: {error}") from None
    return text
