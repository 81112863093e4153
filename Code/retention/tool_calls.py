"""Calls of functions in a model's answer, in the forms that Qwen, Llama and Mistral write, or as bare JSON."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from ..toolkit.files import Decoder

_MARK = re.compile(r"<tool_call>|\[TOOL_CALLS\]|<\|python_tag\|>")
_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w+)?\[ARGS\]\s*")  # newer Mistral: NAME[ARGS]{…}


class Call(NamedTuple):
    name: str
    arguments: dict[str, Any]


def read(text: str) -> list[Call]:
    """The calls in an answer; none if it holds none, or if a call is not valid JSON.

    Calls follow each of the marks ``<tool_call>``, ``[TOOL_CALLS]`` and ``<|python_tag|>``. An answer without a mark
    must begin with the JSON. A call is an object with ``name`` and ``arguments`` (Llama: ``parameters``).
    """
    if not _MARK.search(text):
        return _calls(text) or []
    found: list[Call] = []
    for part in _MARK.split(text)[1:]:
        calls = _calls(part)
        if calls is None:
            return []
        found += calls
    return found


def _calls(text: str) -> list[Call] | None:
    """The calls that ``text`` begins with; None if it begins with something else."""
    named = _NAMED.match(text)
    try:
        value, _ = Decoder().raw_decode((text[named.end() :] if named else text).lstrip())
    except ValueError:
        return None
    if named:
        value = {"name": named[1], "arguments": value}
    values = value if isinstance(value, list) else [value]
    calls = [_call(one) for one in values]
    return None if None in calls else [call for call in calls if call is not None]


def _call(value: Any) -> Call | None:
    if not isinstance(value, dict):
        return None
    value = value.get("function", value) if isinstance(value.get("function"), dict) else value
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    return Call(name, arguments) if isinstance(name, str) and isinstance(arguments, dict) else None


def same_arguments(ours: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether all arguments have the right types and values. Case, outer white space and a final full stop of texts do
    not count, and 5.0 is 5.
    """
    return ours.keys() == right.keys() and all(_same(ours[name], right[name]) for name in right)


def _same(ours: Any, right: Any) -> bool:
    if isinstance(right, str):
        return isinstance(ours, str) and ours.strip().rstrip(".").casefold() == right.casefold()
    if isinstance(right, bool) or isinstance(ours, bool):
        return ours is right
    return isinstance(ours, (int, float)) and bool(ours == right)
