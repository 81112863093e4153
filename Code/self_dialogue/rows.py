"""The four formats of training data, to and from messages.

messages                {"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]}
prompt-completion       {"prompt": "…", "completion": "…"}
prompt-completion-chat  {"prompt": [messages], "completion": [messages]}    TRL's conversational form of the same
alpaca                  {"instruction": …, "input": …, "output": …}, also "system" and "history"
sharegpt                {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .chat import Chat, Message

FORMATS = ("messages", "prompt-completion", "prompt-completion-chat", "alpaca", "sharegpt")
_ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
_FROM = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_TO = {"user": "human", "assistant": "gpt", "system": "system"}


def detect(row: Mapping[str, Any]) -> str:
    """The format of a row, by its columns.

    Raises:
        ValueError: it has the columns of none.
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
    """The conversation in a row of ``format``.

    Raises:
        ValueError: what is wrong with it.
    """
    if detect(row) != format:
        raise ValueError(f"the file began as {format}, this row is {detect(row)}")
    if format == "messages":
        return _checked(row["messages"])
    if format == "sharegpt":
        return _checked([_from_sharegpt(turn) for turn in _listed(row["conversations"], "conversations")])
    if format == "prompt-completion-chat":
        return _checked([*_listed(row["prompt"], "prompt"), *_listed(row["completion"], "completion")])
    if format == "prompt-completion":
        return [_turn("user", row["prompt"], "prompt"), _turn("assistant", row["completion"], "completion")]
    turns = [_turn("system", row["system"], "system")] if row.get("system") else []
    for pair in row.get("history") or []:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ValueError("history is not a list of pairs")
        turns += [_turn("user", pair[0], "history"), _turn("assistant", pair[1], "history")]
    question = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
    return [*turns, _turn("user", question, "instruction"), _turn("assistant", row["output"], "output")]


def row(conversation: Sequence[Message], format: str, chat: Chat | None = None) -> dict[str, Any]:
    """A row of ``format``. ``chat`` renders the prompt of ``prompt-completion`` as the model will read it; without, it
    is the user's bare text.

    Raises:
        ValueError: the format cannot hold this conversation.
    """
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in conversation]
    *context, answer = turns
    if answer["role"] != "assistant":
        raise ValueError("the last message is not the assistant's")
    if format == "messages":
        return {"messages": turns}
    if format == "prompt-completion-chat":
        return {"prompt": context, "completion": [answer]}
    if format == "prompt-completion" and chat is not None:
        return {"prompt": chat.prompt_text(context), "completion": answer["content"]}
    odd = {turn["role"] for turn in turns} - set(_TO)
    if odd:
        raise ValueError(f"{format} has no role {', '.join(sorted(odd))}")
    if format == "sharegpt":
        return {"conversations": [{"from": _TO[turn["role"]], "value": turn["content"]} for turn in turns]}
    if format == "prompt-completion":
        if [turn["role"] for turn in context] != ["user"]:
            raise ValueError("a bare prompt holds a single user message: use --render, or prompt-completion-chat")
        return {"prompt": context[0]["content"], "completion": answer["content"]}
    system = context.pop(0)["content"] if context and context[0]["role"] == "system" else ""
    roles = [turn["role"] for turn in context]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise ValueError("alpaca needs turns of user and assistant by turns")
    history = [[a["content"], b["content"]] for a, b in zip(context[:-1:2], context[1:-1:2])]
    found = {"instruction": context[-1]["content"], "input": "", "output": answer["content"]}
    return {**found, **({"system": system} if system else {}), **({"history": history} if history else {})}


def _checked(turns: Any) -> list[Message]:
    for turn in _listed(turns, "messages"):
        if not isinstance(turn, Mapping) or turn.get("role") not in _ROLES:
            raise ValueError(f"a message without a known role: {str(turn)[:60]}")
        if not isinstance(turn.get("content"), str) and not turn.get("tool_calls"):
            raise ValueError(f"the content of a message is no text: {str(turn)[:60]}")
    if not any(turn["role"] == "assistant" for turn in turns):
        raise ValueError("no message of the assistant: nothing to train on")
    return [{**turn, "content": turn.get("content") or ""} for turn in turns]


def _from_sharegpt(turn: Any) -> Message:
    if not isinstance(turn, Mapping) or turn.get("from") not in _FROM:
        raise ValueError(f'a turn without a known "from": {str(turn)[:60]}')
    return _turn(_FROM[turn["from"]], turn.get("value"), "value")


def _turn(role: str, content: Any, name: str) -> Message:
    if not isinstance(content, str):
        raise ValueError(f"{name} is no text: {str(content)[:60]}")
    return {"role": role, "content": content}


def _listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is not a list with something in it")
    return list(value)
