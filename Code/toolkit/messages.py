"""Checks of the conversations in rows, and the columns of a row that a model reads beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
PLAIN_ROLES = ("system", "user", "assistant")
# These columns change what a model reads. A tool that does not show them to the model must refuse them.
READ_BY_MODEL = (
    "tools", "functions", "system", "history", "documents", "images", "image", "videos", "video", "audios", "audio",
    "chat_template", "chat_template_kwargs",
)  # fmt: skip


def checked(turns: Any, name: str) -> list[Message]:
    """The messages in ``turns``, which is the value of the column ``name``.

    Raises:
        ValueError: a message has no known role, no text, or tool calls that are not a list of objects.
    """
    for index, turn in enumerate(listed(turns, name)):
        role = turn.get("role") if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"{name}[{index}]: a message without a known role: {shown(turn)}")
        calls, content = turn.get("tool_calls"), turn.get("content")
        listing = isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)
        if not (listing or isinstance(calls, (str, type(None)))):  # some data sets hold the calls as JSON text
            raise ValueError(f"{name}[{index}]: tool_calls is not a list of objects: {shown(calls)}")
        if not isinstance(content, str) and not (content is None and calls):
            raise ValueError(f"{name}[{index}]: the content of a message is no text: {shown(turn)}")
    return [dict(turn) for turn in turns]


def check_plain(turns: Iterable[Message]) -> None:
    """Raise ValueError for a message that the plain template cannot hold: one with tool calls, which it leaves out,
    or of a role such as "tool", which it gives to the assistant.
    """
    for index, turn in enumerate(turns):
        if not empty(turn.get("tool_calls")):
            raise ValueError(f"message {index + 1} has tool_calls, which the plain template cannot hold")
        if turn.get("role") not in PLAIN_ROLES:
            role = turn.get("role")
            raise ValueError(f"message {index + 1} has the role {role!r}, which the plain template cannot hold")


def refuse_columns(row: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    """Raise ValueError if one of these columns is not empty. ``why`` ends the message: "… cannot hold it"."""
    filled = [name for name in names if not empty(row.get(name))]
    if filled:
        raise ValueError(f"column {', '.join(filled)}: {why}")


def empty(value: Any) -> bool:
    """Whether a value is None, an empty text, an empty list or an empty object. False and 0 are not empty."""
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def listed(value: Any, name: str) -> list[Any]:
    """``value`` as a list. Raises ValueError if ``value`` is not a list, or is empty."""
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is not a list with something in it")
    return list(value)


def text(value: Any, name: str) -> str:
    """``value``. Raises ValueError if ``value`` is not a text."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text: {shown(value)}")
    return value


def shown(value: Any) -> str:
    """The first characters of a value, for an error message."""
    return str(value)[:60]
