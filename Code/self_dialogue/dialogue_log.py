"""A log of the turns that the model has written, one line of JSON per batch, so that a run can stop at any time.

The first line holds the settings that decide the text. A run with other settings refuses the log. A line that a crash
has cut short is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from ..toolkit.files import DECODER, check_text, dumps, parse_json


@dataclass(frozen=True)
class Turn:
    dialogue: int
    turn: int
    text: str
    tokens: int
    finished: bool


class DialogueLog:
    """Reads the log at ``path`` if there is one, else begins a new log.

    Raises:
        Refusal: the log belongs to a run with other settings, or the file is not a log.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.seconds = 0.0
        self._turns: dict[tuple[int, int], Turn] = {}
        settings = DECODER.decode(json.dumps(settings))  # as it will be read; names of files may hold half a character
        end = self._read(settings) if path.exists() else 0
        self._stream = path.open("r+b" if end else "wb")
        self._stream.seek(end)
        self._stream.truncate()
        if not end:
            self._line({"settings": settings})

    def __len__(self) -> int:
        return len(self._turns)

    def take(self, dialogue: int, turn: int) -> Turn | None:
        """A turn that an earlier run wrote, or None. Each turn is handed out once."""
        return self._turns.pop((dialogue, turn), None)

    def append(self, turns: Sequence[Turn], seconds: float) -> None:
        self.seconds += seconds
        self._line({"turns": [astuple(turn) for turn in turns], "seconds": round(seconds, 3)})

    def close(self) -> None:
        self._stream.close()

    def remove(self) -> None:
        self.close()
        self.path.unlink()

    def _line(self, content: Any) -> None:
        self._stream.write(dumps(content) + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())

    def _read(self, settings: Any) -> int:
        """Reads the turns. Returns where the last whole line ends; 0 if the first line is cut short."""
        end = 0
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    content = parse_json(line.decode())
                    if end:
                        turns = [_turn(values) for values in content["turns"]]
                        self._turns.update({(turn.dialogue, turn.turn): turn for turn in turns})
                        self.seconds += content["seconds"]
                    else:
                        self._compare(content["settings"], settings)
                except (ValueError, LookupError, TypeError, AttributeError):
                    do = f"move {self.path} away"
                    raise Refusal("bad-log", f"{self.path} is not a log of self-dialogues", do=do) from None
                end += len(line)
        return end

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if names:
            raise Refusal(
                "other-settings",
                "an interrupted run with other settings wrote to the same file",
                expected=", ".join(f"{name} {_short(before.get(name))}" for name in names),
                found=", ".join(f"{name} {_short(now.get(name))}" for name in names),
                do=f"the same settings again, another --out, or delete {self.path}",
            )


def _turn(values: Sequence[Any]) -> Turn:
    turn = Turn(*values)
    kinds = [int, int, str, int, bool]
    if [type(value) for value in values] != kinds:
        raise TypeError(values)
    check_text(turn.text)
    return turn


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "…"
