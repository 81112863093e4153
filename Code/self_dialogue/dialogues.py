"""A model talks to itself: the model writes the user's turn, then the assistant's turn, once or several times.

A dialogue starts either from the bare header of the template's user turn, so that the model invents the message (as in
Magpie, arXiv 2406.08464), or from a topic, about which the model writes a user's message. Later user turns always start
from the header.

The settings decide everything: dialogues have numbers, each number has its own random numbers, and a fixed rule makes
the batches. So an interrupted run continues from its log (:mod:`.dialogue_log`) to the same file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable

from ..toolkit.chat import Chat
from ..toolkit.errors import Refusal
from ..toolkit.messages import Message
from .dialogue_log import DialogueLog, Turn
from .filters import Filters
from .generator import Request

ROUND = 4  # batches whose turns are sorted by length together, which saves padding
HOPELESS_AFTER, HOPELESS_SHARE = 200, 0.02
TOPIC_PROMPT = (
    "Write one message that someone might send to an assistant about the following topic. "
    "Reply with the message alone.\n\nTopic: {topic}"
)


@dataclass(frozen=True)
class Plan:
    """What the model shall write. Without topics, dialogues start from the bare header."""

    turns: int = 1
    user_tokens: int = 128
    answer_tokens: int = 384
    batch: int = 16
    seed: int = 0
    system: str | None = None
    topics: tuple[str, ...] = ()
    topic_prompt: str = TOPIC_PROMPT

    def start(self) -> list[Message]:
        """What is there before the first turn: the system message, if there is one."""
        return [] if self.system is None else [{"role": "system", "content": self.system}]

    def asked(self, topic: str) -> list[Message]:
        """The conversation whose answer is a user's message about ``topic``."""
        return [*self.start(), {"role": "user", "content": self.topic_prompt.replace("{topic}", topic)}]


@dataclass
class Dialogue:
    """One dialogue, complete or not. ``reason`` says why the dialogue is rejected; '' if it is not."""

    index: int
    messages: list[Message]
    user_tokens: int = 0
    answer_tokens: int = 0
    reason: str = ""


@dataclass
class Written:
    """What the model has written in this run and in the interrupted runs before."""

    turns: int = 0
    tokens: int = 0
    seconds: float = 0.0
    from_log: int = 0
    observers: list[Callable[[Written], Any]] = field(default_factory=list)


class Writer:
    """Writes dialogues in rounds of ``ROUND`` batches. ``log`` holds the turns of an interrupted run."""

    def __init__(self, generator: Any, chat: Chat, plan: Plan, filters: Filters, log: DialogueLog) -> None:
        self.generator, self.chat, self.plan, self.filters, self.log = generator, chat, plan, filters, log
        self.written = Written()

    def dialogues(self, enough: Callable[[], float]) -> Iterator[Dialogue]:
        """Yield dialogues in order, the rejected ones too, until ``enough()`` reaches 1.

        Args:
            enough: returns the share of the goal that the kept dialogues make up.

        Raises:
            Refusal: hardly any dialogue passes the filters.
        """
        seen = kept = 0
        while enough() < 1:
            for dialogue in self._round(range(seen, seen + self._size(seen, kept, enough()))):
                seen += 1
                if not dialogue.reason:
                    dialogue.reason = self.filters.dialogue(
                        dialogue.messages, dialogue.user_tokens + dialogue.answer_tokens
                    )
                self.filters.count(dialogue.reason)
                kept += not dialogue.reason
                yield dialogue
                if enough() >= 1:
                    return
            if seen >= HOPELESS_AFTER and kept < HOPELESS_SHARE * seen:
                reasons = ", ".join(f"{name} {count}" for name, count in self.filters.counts.most_common() if name)
                raise Refusal(
                    "too-few-kept",
                    "the filters let hardly any dialogue through",
                    found=f"{kept} of {seen} kept; {reasons}",
                    do="a model that follows its chat template, longer turns (--user-tokens, --answer-tokens), or "
                    "looser filters; what was written stays in the log",
                )

    def _size(self, seen: int, kept: int, share: float) -> int:
        """How many dialogues the next round needs, if the filters let through the same share as before."""
        batch = self.plan.batch
        if not kept or not share:
            return batch * (ROUND if seen else 1)
        missing = kept * (1 - share) / share
        return batch * min(ROUND, max(1, math.ceil(missing * seen / kept / batch)))

    def _round(self, indices: range) -> list[Dialogue]:
        dialogues = [Dialogue(index, self.plan.start()) for index in indices]
        for turn in range(self.plan.turns):
            self._turn(dialogues, 2 * turn, "user")
            self._turn(dialogues, 2 * turn + 1, "assistant")
        return dialogues

    def _turn(self, dialogues: Sequence[Dialogue], number: int, role: str) -> None:
        """Write one turn of every dialogue that is not rejected."""
        limit = self.plan.user_tokens if role == "user" else self.plan.answer_tokens
        requests = []
        for dialogue in dialogues:
            if dialogue.reason:
                continue
            prompt = self._prompt(dialogue, number, role)
            if self.generator.limit is not None and len(prompt) + limit > self.generator.limit:
                dialogue.reason = "over-long"
            else:
                requests.append(Request(dialogue.index, number, prompt))
        requests.sort(key=lambda request: (len(request.prompt), request.dialogue))
        by_index = {dialogue.index: dialogue for dialogue in dialogues}
        for start in range(0, len(requests), self.plan.batch):
            for request, turn in self._batch(requests[start : start + self.plan.batch], limit, role):
                dialogue = by_index[request.dialogue]
                dialogue.messages.append({"role": role, "content": turn.text})
                dialogue.reason = self.filters.turn(role, turn.text, turn.finished)
                if role == "user":
                    dialogue.user_tokens += turn.tokens
                else:
                    dialogue.answer_tokens += turn.tokens

    def _prompt(self, dialogue: Dialogue, number: int, role: str) -> list[int]:
        if role == "assistant":
            return self.chat.assistant_prompt(dialogue.messages)
        if number == 0 and self.plan.topics:
            topic = self.plan.topics[dialogue.index % len(self.plan.topics)]
            return self.chat.assistant_prompt(self.plan.asked(topic))
        return self.chat.user_prompt(dialogue.messages)

    def _batch(self, requests: list[Request], limit: int, role: str) -> list[tuple[Request, Turn]]:
        logged = {key: self.log.take(*key) for key in map(_key, requests)}
        turns = {key: turn for key, turn in logged.items() if turn is not None}
        missing = [request for request in requests if _key(request) not in turns]
        self.written.from_log += len(turns)
        if missing:
            from_topic = role == "user" and missing[0].turn == 0 and self.plan.topics
            ending = self.chat.assistant_ending if role == "assistant" or from_topic else self.chat.user_ending
            started = time.perf_counter()
            answers = self.generator.write(missing, limit, ending)
            seconds = time.perf_counter() - started
            new = {
                _key(request): Turn(request.dialogue, request.turn, *self.chat.decode(ids, ending))
                for request, ids in zip(missing, answers)
            }
            self.log.append(list(new.values()), seconds)
            turns.update(new)
        self.written.turns += len(requests)
        self.written.tokens += sum(turn.tokens for turn in turns.values())
        self.written.seconds = self.log.seconds
        for observer in self.written.observers:
            observer(self.written)
        return [(request, turns[_key(request)]) for request in requests]


def _key(request: Request) -> tuple[int, int]:
    return request.dialogue, request.turn
