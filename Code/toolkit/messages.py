"""Conversations as rows have them: their checks, by value, and what else in a row a model would read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Message = dict[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
# columns that change what a model reads: a tool that does not show them to the model may not pass over them
READ_BY_MODEL = (
    "tools", "functions", "system", "history", "documents", "images", "image", "videos", "video", "audios", "audio",
    "chat_template", "chat_template_kwargs",
)  # fmt: skip


def checked(turns: Any, name: str) -> list[Message]:
    """The messages in ``turns``, the value of the column ``name``.

    Raises:
        ValueError: what is wrong with them.
    """
    found = listed(turns, name)
    for index, turn in enumerate(found):
        role = turn.get("role") if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or role not in ROLES:
            raise ValueError(f"{name}[{index}]: a message without a known role: {shown(turn)}")
        calls, content = turn.get("tool_calls"), turn.get("content")
        listing = isinstance(calls, list) and all(isinstance(call, Mapping) for call in calls)
        if not (listing or isinstance(calls, (str, type(None)))):  # as text: some have JSON in JSON
            raise ValueError(f"{name}[{index}]: tool_calls is not a list of objects: {shown(calls)}")
        if not isinstance(content, str) and not (content is None and calls):
            raise ValueError(f"{name}[{index}]: the content of a message is no text: {shown(turn)}")
    return [dict(turn) for turn in found]


def refuse_columns(row: Mapping[str, Any], names: Iterable[str], why: str) -> None:
    """Raise ValueError if the row has one of these columns, other than empty. ``why``: "… cannot hold it"."""
    more = [name for name in names if not empty(row.get(name))]
    if more:
        raise ValueError(f"column {', '.join(more)}: {why}")


def empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def listed(value: Any, name: str) -> list[Any]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is not a list with something in it")
    return list(value)


def text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is no text: {shown(value)}")
    return value


def shown(value: Any) -> str:
    """The beginning of a value, for an error."""
    return str(value)[:60]
