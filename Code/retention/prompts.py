"""Files of general instructions and of task questions, checked row by row before any model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..refusal import Refusal
from ..rowfiles import KINDS, malformed, rows
from . import instructions

PROBLEMS = 10
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TASK_COLUMNS = "prompt and answer, messages, or prompt and completion"
T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], "Prompt"]


@dataclass(frozen=True)
class Prompt:
    """What a model is to answer: a conversation for the chat template, or a text that it reads as it stands."""

    content: list[dict[str, Any]] | str
    accepted: tuple[str, ...] = ()
    answerable: bool | None = None
    where: str = ""

    def text(self) -> str:
        """For people: the last message."""
        return self.content if isinstance(self.content, str) else str(self.content[-1]["content"])


def general(file: Path | None, count: int | None = None) -> list[Prompt]:
    """General instructions: our own without a file; else rows, or a plain text with one instruction per line.

    Raises:
        Refusal: there is no such file, or rows are malformed: each with file and line.
    """
    if file is None:
        found = [Prompt(_asked(line)) for line in instructions.INSTRUCTIONS]
    elif file.suffix in KINDS:
        found = _read(file, _instruction)
    else:
        found = [Prompt(_asked(line.strip()), where=f"{file}:{number}") for number, line in _lines(file)]
    return spread(_some(found, file), count)


def task(file: Path, count: int | None = None) -> list[Prompt]:
    """Questions with their accepted answers.

    Raises:
        Refusal: as :func:`general`.
    """
    return spread(_some(_read(file, _question), file), count)


def spread(items: Sequence[T], count: int | None) -> list[T]:
    """``count`` items, evenly over the list; all of them without a count."""
    count = len(items) if count is None else min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _some(found: list[Prompt], file: Path | None) -> list[Prompt]:
    if not found:
        raise Refusal("no-rows", f"{file} has no rows")
    return found


def _lines(file: Path) -> list[tuple[int, str]]:
    if not file.is_file():
        raise Refusal("no-file", f"there is no file {file}")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise Refusal("malformed-row", f"{file}: the text is not UTF-8", found=str(error)) from None
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _read(file: Path, read: Read) -> list[Prompt]:
    found, problems = [], []
    for line, row in rows(file):
        try:
            found.append(replace(read(row), where=f"{file}:{line}"))
        except ValueError as error:
            problems.append(str(malformed(file, line, str(error))))
            if len(problems) == PROBLEMS:
                break
    if problems:
        raise Refusal("malformed-rows", "rows that cannot be used\n" + "\n".join(problems))
    return found


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
    """What is asked, and the answer if the row's messages or completion have one."""
    if "messages" in row:
        turns = _turns(row["messages"], "messages")
        if turns[-1]["role"] != "assistant":
            return turns, None
        if len(turns) == 1:
            raise ValueError("messages holds an answer only: nothing asks for it")
        return turns[:-1], turns[-1]["content"]
    if "prompt" not in row:
        raise ValueError(f"columns {', '.join(row) or 'none'}: expected {expected}")
    prompt, completion = row["prompt"], row.get("completion")
    if isinstance(completion, (list, tuple)):
        completion = _turns(completion, "completion")[-1]["content"]
    if not isinstance(completion, (str, type(None))):
        raise ValueError(f"completion is no text: {str(completion)[:40]}")
    if isinstance(prompt, (list, tuple)):
        return _turns(prompt, "prompt"), completion
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"prompt is no text: {str(prompt)[:40]!r}")
    return (prompt if completion is not None else _asked(prompt)), completion


def _turns(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name} is not a list with something in it")
    for turn in value:
        if not isinstance(turn, Mapping) or turn.get("role") not in _ROLES:
            raise ValueError(f"{name}: a message without a known role: {str(turn)[:60]}")
        if not isinstance(turn.get("content"), str):
            raise ValueError(f"{name}: the content of a message is no text: {str(turn)[:60]}")
    return [dict(turn) for turn in value]


def _asked(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]
