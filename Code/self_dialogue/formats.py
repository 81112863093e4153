"""The formats of training rows, to and from messages.

messages                {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}
prompt-completion       {"prompt": "…", "completion": "…"}
prompt-completion-chat  {"prompt": [messages], "completion": [messages]}    TRL's conversational form of the same
alpaca                  {"instruction": …, "input": …, "output": …}, also "system" and "history"
sharegpt                {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}, also "system"

A converted row keeps its other columns. A column that the new format cannot hold is an error that names the column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..toolkit.chat import Chat
from ..toolkit.messages import READ_BY_MODEL, Message, checked, empty, listed, refuse_columns, shown, text

FORMATS = ("messages", "prompt-completion", "prompt-completion-chat", "alpaca", "sharegpt")
_FROM = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TO = {"user": "human", "assistant": "gpt", "system": "system"}
_COLUMNS = {  # the columns of each format that a conversion reads
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "prompt-completion-chat": ("prompt", "completion"),
    "alpaca": ("instruction", "input", "output", "system", "history"),
    "sharegpt": ("conversations", "system"),
}
_OF_MESSAGES = ("messages", "prompt-completion-chat")  # hold whole messages, with the same columns beside them
_TAKEN = {name for columns in _COLUMNS.values() for name in columns}


def detect(row: Mapping[str, Any]) -> str:
    """The format of a row, by its columns.

    Raises:
        ValueError: no format has these columns.
    """
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "prompt" in row and "completion" in row:
        return "prompt-completion-chat" if isinstance(row["prompt"], (list, tuple)) else "prompt-completion"
    if "instruction" in row and "output" in row:
        return "alpaca"
    raise ValueError(f"columns {', '.join(row) or 'none'}: none of {', '.join(FORMATS)}")


def messages(row: Mapping[str, Any], format: str) -> list[Message]:
    """The conversation in a row of ``format``. Messages keep what they hold beside role and content.

    Raises:
        ValueError: the row is malformed, or has another format.
    """
    if detect(row) != format:
        raise ValueError(f"the file began as {format}, this row is {detect(row)}")
    if format == "messages":
        return _answered(checked(row["messages"], "messages"))
    if format == "sharegpt":
        turns = [_from_sharegpt(turn) for turn in listed(row["conversations"], "conversations")]
        return _answered([*_system(row, turns), *turns])
    if format == "prompt-completion-chat":
        return _answered([*checked(row["prompt"], "prompt"), *checked(row["completion"], "completion")])
    if format == "prompt-completion":
        return [_turn("user", row["prompt"], "prompt"), _turn("assistant", row["completion"], "completion")]
    turns = []
    history = row.get("history")
    if not isinstance(history, (list, tuple, type(None))):
        raise ValueError(f"history is not a list of pairs: {shown(history)}")
    for pair in history or ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("history is not a list of pairs")
        turns += [_turn("user", pair[0], "history"), _turn("assistant", pair[1], "history")]
    extra = row.get("input")
    parts = [text(row["instruction"], "instruction"), "" if extra is None else text(extra, "input")]
    question = "\n".join(part for part in parts if part)
    turns = [*_system(row, turns), *turns]
    return [*turns, _turn("user", question, "instruction"), _turn("assistant", row["output"], "output")]


def converted(
    row_before: Mapping[str, Any], before: str, conversation: Sequence[Message], format: str, chat: Chat | None = None
) -> dict[str, Any]:
    """A row of the format ``before``, converted to ``format``. ``conversation`` is the result of :func:`messages`.

    Raises:
        ValueError: the format cannot hold this row. The error names the column.
    """
    same = before in _OF_MESSAGES and format in _OF_MESSAGES
    others = {name: value for name, value in row_before.items() if name not in _COLUMNS[before]}
    unfit = [name for name in others if name in _TAKEN or (name in READ_BY_MODEL and not same)]
    refuse_columns(others, unfit, f"{format} cannot hold it")
    if before == "sharegpt" and any(turn.get("from") == "system" for turn in row_before["conversations"]):
        refuse_columns(row_before, ["system"], "the conversation already has a system message")
    new_row = row(conversation, format, chat)
    return {**new_row, **{name: value for name, value in others.items() if name not in unfit}}


def row(conversation: Sequence[Message], format: str, chat: Chat | None = None) -> dict[str, Any]:
    """A row of ``format`` from a conversation.

    Args:
        chat: renders the prompt of ``prompt-completion`` as the model will read it. None writes the user's bare text.

    Raises:
        ValueError: the format cannot hold this conversation.
    """
    turns = [_ordered(turn) for turn in conversation]
    *context, answer = turns
    if answer["role"] != "assistant":
        raise ValueError("the last message is not the assistant's")
    if format == "messages":
        return {"messages": turns}
    if format == "prompt-completion-chat":
        return {"prompt": context, "completion": [answer]}
    for index, turn in enumerate(turns):
        extra = [name for name, value in turn.items() if name not in ("role", "content") and not empty(value)]
        if extra:
            raise ValueError(f"message {index + 1} has {', '.join(extra)}, which {format} cannot hold")
        text(turn.get("content"), f"the content of message {index + 1}")
    if format == "prompt-completion" and chat is not None:
        return {"prompt": chat.shown_prompt(context), "completion": answer["content"]}
    odd = {turn["role"] for turn in turns} - set(_TO)
    if odd:
        raise ValueError(f"{format} has no role {', '.join(sorted(odd))}")
    if format == "sharegpt":
        return {"conversations": [{"from": _TO[turn["role"]], "value": turn["content"]} for turn in turns]}
    if format == "prompt-completion":
        if [turn["role"] for turn in context] != ["user"]:
            raise ValueError("a bare prompt holds a single user message: use --render, or prompt-completion-chat")
        return {"prompt": context[0]["content"], "completion": answer["content"]}
    system = context.pop(0)["content"] if context and context[0]["role"] == "system" else None
    if system == "":
        raise ValueError("the system message is empty, and alpaca cannot distinguish that from no system message")
    roles = [turn["role"] for turn in context]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ValueError("alpaca needs alternating turns of user and assistant")
    history = [[a["content"], b["content"]] for a, b in zip(context[:-1:2], context[1:-1:2])]
    alpaca = {"instruction": context[-1]["content"], "input": "", "output": answer["content"]}
    return {**alpaca, **({"system": system} if system else {}), **({"history": history} if history else {})}


def _answered(turns: list[Message]) -> list[Message]:
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("there is no message of the assistant to train on")
    return turns


def _ordered(turn: Message) -> Message:
    """A message with role and content first, and without keys that are None: Parquet gives every message every key."""
    first: Message = {name: turn[name] for name in ("role", "content") if name in turn}
    return {**first, **{name: value for name, value in turn.items() if name not in first and value is not None}}


def _system(row: Mapping[str, Any], turns: Sequence[Message]) -> list[Message]:
    """The column ``system`` as a message, in a list of one; an empty list if the column is empty."""
    system = row.get("system")
    if system is None or text(system, "system") == "":
        return []
    if any(turn["role"] == "system" for turn in turns):
        return []  # the conversation's own system message counts; converted() refuses a row with both
    return [_turn("system", system, "system")]


def _from_sharegpt(turn: Any) -> Message:
    origin = turn.get("from") if isinstance(turn, Mapping) else None
    if not isinstance(origin, str) or origin not in _FROM:
        raise ValueError(f'a turn without a known "from": {shown(turn)}')
    both = [name for name in ("role", "content") if not empty(turn.get(name))]
    if both:
        raise ValueError(f'a turn with "from" and "{both[0]}": {shown(turn)}')
    extra = {name: value for name, value in turn.items() if name not in ("from", "value", "role", "content")}
    return {**_turn(_FROM[origin], turn.get("value"), "value"), **extra}


def _turn(role: str, content: Any, name: str) -> Message:
    return {"role": role, "content": text(content, name)}
