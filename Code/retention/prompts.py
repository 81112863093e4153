"""General instructions and task questions from files. Every row is checked before any model loads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..toolkit import rows
from ..toolkit.errors import Refusal
from ..toolkit.files import text_lines
from ..toolkit.messages import READ_BY_MODEL, checked, refuse_columns, shown, text
from . import instructions

_TASK_COLUMNS = "prompt and answer, messages, or prompt and completion"
T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """What a model shall answer: a conversation for the chat template, or a plain text. ``arguments``: for the chat
    template.
    """

    content: list[dict[str, Any]] | str
    accepted: tuple[str, ...] = ()
    answerable: bool | None = None
    where: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """The last message, for people to read."""
        return self.content if isinstance(self.content, str) else str(self.content[-1]["content"])


def general(file: Path | None, count: int | None = None) -> list[Prompt]:
    """General instructions from a file of rows, or from a plain text with one instruction per line. Without a file, the
    instructions of :mod:`.instructions`.

    Raises:
        Refusal: the file does not exist, or rows are malformed. The refusal names file and line.
    """
    if file is None:
        prompts = [Prompt(_asked(line)) for line in instructions.INSTRUCTIONS]
    elif file.suffix in rows.KINDS:
        prompts = _read(file, _instruction)
    else:
        prompts = [Prompt(_asked(line), where=f"{file}:{number}") for number, line in text_lines(file)]
    return spread(_some(prompts, file), count)


def task(file: Path, count: int | None = None) -> list[Prompt]:
    """Questions with their accepted answers. Raises the refusals of :func:`general`."""
    return spread(_some(_read(file, _question), file), count)


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """``count`` items, evenly over the list; all of them without a count."""
    count = len(items) if count is None else min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _some(prompts: list[Prompt], file: Path | None) -> list[Prompt]:
    if not prompts:
        raise Refusal("no-rows", f"{file} has no rows")
    return prompts


def _read(file: Path, read: Read) -> list[Prompt]:
    return [replace(prompt, where=where) for where, prompt in rows.checked(file, read)]


def _instruction(row: Mapping[str, Any]) -> Prompt:
    content, _ = _content(row, "prompt or messages")
    return Prompt(content)


def _question(row: Mapping[str, Any]) -> Prompt:
    content, answer = _content(row, _TASK_COLUMNS)
    accepted = row.get("answer", answer)
    if accepted is None:
        raise ValueError("no answer: neither a column answer nor a last message of the assistant")
    accepted = [accepted] if isinstance(accepted, str) else accepted
    if not isinstance(accepted, (list, tuple)) or not accepted or not all(isinstance(one, str) for one in accepted):
        raise ValueError(f"answer is a text, or a list of the accepted texts, not {str(accepted)[:40]!r}")
    answerable = row.get("answerable")
    if answerable is not None and not isinstance(answerable, bool):
        raise ValueError(f"answerable is true or false, not {answerable!r}")
    return Prompt(content, tuple(accepted), answerable)


def _content(row: Mapping[str, Any], expected: str) -> tuple[list[dict[str, Any]] | str, str | None]:
    """(what a model shall answer, the answer in the row's messages or completion, or None)."""
    refuse_columns(row, READ_BY_MODEL, "no model would be shown it: take it out, or write it into the messages")
    if "messages" in row:
        return _asked_and_answered(_turns(row["messages"], "messages"), "messages")
    if "prompt" not in row:
        raise ValueError(f"columns {', '.join(row) or 'none'}: expected {expected}")
    prompt, completion = row["prompt"], row.get("completion")
    if isinstance(completion, (list, tuple)):
        turns = _turns(completion, "completion")
        if turns[-1]["role"] != "assistant":
            raise ValueError("completion does not end with the assistant's message")
        if isinstance(prompt, (list, tuple)):
            return _asked_and_answered([*_turns(prompt, "prompt"), *turns], "completion")
        if len(turns) > 1:
            raise ValueError("completion has several messages, and prompt is a text: make prompt a list of messages")
        completion = turns[0]["content"]
    if not isinstance(completion, (str, type(None))):
        raise ValueError(f"completion is no text: {shown(completion)}")
    if isinstance(prompt, (list, tuple)):
        return _turns(prompt, "prompt"), completion
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt is no text: {str(prompt)[:40]!r}")
    return (prompt if completion is not None else _asked(prompt)), completion


def _asked_and_answered(turns: list[dict[str, Any]], name: str) -> tuple[list[dict[str, Any]], str | None]:
    if turns[-1]["role"] != "assistant":
        return turns, None
    if len(turns) == 1:
        raise ValueError(f"{name} holds an answer only: nothing asks for it")
    return turns[:-1], turns[-1]["content"]


def _turns(value: Any, name: str) -> list[dict[str, Any]]:
    """Messages that all have a text. A message that only calls tools has no text to compare or to show."""
    turns = checked(value, name)
    for index, turn in enumerate(turns):
        text(turn.get("content"), f"{name}[{index}]: the content of a message")
    return turns


def _asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
