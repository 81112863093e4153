"""Probes of what users miss after fine-tuning: tool calls, system prompts, thinking, plain questions.

What a chat template supports is seen by rendering with and without. A probe that the template does not support is left
out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..toolkit.chat import MARK, Chat
from ..toolkit.errors import Refusal
from . import obedience, question_cases, system_cases, tool_calls, tool_cases
from .prompts import Prompt
from .scores import score

VERSION = 1  # raised when a case or a check changes, so that the probes are measured again
LIMIT = 128  # tokens of an answer
THINKING = 20  # questions that are asked with thinking on, and with thinking off
_THOUGHT = 5  # words, at least
_OPEN, _CLOSE = "<think>", "</think>"
# probe -> its metrics
METRICS = {
    "tools": ("tool_calls", "tool_json", "tool_function"),
    "system": ("system_language", "system_persona", "system_format"),
    "thinking": ("thinking_on", "thinking_off"),
    "questions": ("questions",),
}
_KINDS = {"language": "language", "begins": "persona", "ends": "persona", "names": "persona"}  # the others: format


@dataclass(frozen=True)
class Probe:
    """``check``: from the model's answer, with its special tokens but without the ending, to 0 or 1 for each metric."""

    name: str
    prompt: Prompt
    check: Callable[[str], dict[str, float]]


def collect(chat: Chat) -> tuple[list[Probe], dict[str, str]]:
    """The probes that the chat template supports, and why the others are left out, by their names."""
    reasons = {"tools": without_tools(chat), "system": without_system(chat), "thinking": without_thinking(chat)}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    quick = {"enable_thinking": False} if _switches(chat) else {}
    probes: list[Probe] = []
    if "tools" not in left_out:
        for name, request, right in tool_cases.CASES:
            prompt = Prompt(_user(request), arguments={"tools": tool_cases.offered(name), **quick})
            probes.append(Probe("tools", prompt, _tool_check(name, right)))
    if "system" not in left_out:
        for system, question, kind, given in system_cases.CASES:
            content = [{"role": "system", "content": system}, *_user(question)]
            probes.append(Probe("system", Prompt(content, arguments=quick), _system_check(kind, given)))
    if "thinking" not in left_out:
        for question, accepted in question_cases.CASES[:THINKING]:
            for on in (True, False):
                prompt = Prompt(_user(question), arguments={"enable_thinking": on})
                check = _thinking_check(_opened(chat, prompt)) if on else _no_thinking_check(accepted)
                probes.append(Probe("thinking", prompt, check))
    for question, accepted in question_cases.CASES:
        probes.append(Probe("questions", Prompt(_user(question), arguments=quick), _question_check(accepted)))
    return probes, left_out


def without_tools(chat: Chat) -> str | None:
    """Why no tool call can be checked with this template; None if calls can be checked.

    A call that the template itself writes must be readable, or else a right call of the model would be scored 0.
    """
    asked, name = _user(MARK.format(0)), tool_cases.CASES[0][0]
    tools, right = tool_cases.offered(name), tool_cases.CASES[0][2]
    call = {"type": "function", "id": "selfaug01", "function": {"name": name, "arguments": right}}
    called: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    try:
        if name not in chat.prompt_text(asked, tools=tools):
            return "the chat template ignores tools"
        text = chat.text([*asked, called], tools=tools)
        plain = chat.text([*asked, {"role": "assistant", "content": MARK.format(1)}], tools=tools)
    except Refusal as error:
        return f"the chat template fails with tools: {error.found}"
    header = plain.partition(MARK.format(1))[0]  # up to where the assistant's own text begins
    if tool_calls.read(text[len(header) :]) != [(name, right)]:
        return "the chat template writes no calls, or writes them in a form that this tool cannot read"
    return None


def without_system(chat: Chat) -> str | None:
    """Why no system prompt can be given with this template; None if one can be given."""
    system, user = ({"role": role, "content": MARK.format(role)} for role in ("system", "user"))
    try:
        if system["content"] not in chat.prompt_text([system, user]):
            return "the chat template ignores system prompts"
    except Refusal as error:
        return f"the chat template has no system role: {error.found}"
    return None


def without_thinking(chat: Chat) -> str | None:
    """Why thinking cannot be checked with this template; None if it can be checked."""
    if not _switches(chat):
        return "the chat template has no enable_thinking"
    if _OPEN not in str(chat.tokenizer.chat_template):
        return f"the chat template marks thoughts with something else than {_OPEN}"
    return None


def _switches(chat: Chat) -> bool:
    asked = _user(MARK.format(0))
    return chat.prompt_text(asked, enable_thinking=True) != chat.prompt_text(asked, enable_thinking=False)


def _opened(chat: Chat, prompt: Prompt) -> bool:
    """Whether the prompt itself opens the thought."""
    return chat.prompt_text(_user(prompt.text()), **prompt.arguments).rstrip().endswith(_OPEN)


def _tool_check(name: str, right: dict[str, Any]) -> Callable[[str], dict[str, float]]:
    def check(answer: str) -> dict[str, float]:
        calls = tool_calls.read(_said(answer))
        function = len(calls) == 1 and calls[0].name == name
        whole = function and tool_calls.same_arguments(calls[0].arguments, right)
        return {"tool_calls": float(whole), "tool_json": float(bool(calls)), "tool_function": float(function)}

    return check


def _system_check(check: str, given: str) -> Callable[[str], dict[str, float]]:
    metric = f"system_{_KINDS.get(check, 'format')}"
    return lambda answer: {metric: float(obedience.obeyed(_said(answer), check, given))}


def _question_check(accepted: tuple[str, ...]) -> Callable[[str], dict[str, float]]:
    return lambda answer: {"questions": score(_said(answer), accepted)["contains"]}


def _thinking_check(opened: bool) -> Callable[[str], dict[str, float]]:
    """A thought of some words, whether the limit cuts it or not."""

    def check(answer: str) -> dict[str, float]:
        before, mark, after = answer.partition(_OPEN)
        if mark:
            thought = after if not before.strip() else ""
        else:  # a prompt that opens the thought leaves the closing to the model
            thought = answer if opened and _CLOSE in answer else ""
        return {"thinking_on": float(len(thought.partition(_CLOSE)[0].split()) >= _THOUGHT)}

    return check


def _no_thinking_check(accepted: tuple[str, ...]) -> Callable[[str], dict[str, float]]:
    """The right answer without a thought."""

    def check(answer: str) -> dict[str, float]:
        thinks = _OPEN in answer or _CLOSE in answer
        return {"thinking_off": float(not thinks and score(answer, accepted)["contains"] == 1)}

    return check


def _said(answer: str) -> str:
    """The answer behind its thought; nothing, if the thought has no end."""
    if _CLOSE in answer:
        return answer.rpartition(_CLOSE)[2]
    return "" if _OPEN in answer else answer


def _user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
