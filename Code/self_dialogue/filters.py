"""Decides which dialogues are kept. A rejected dialogue has one reason: the first in ``REASONS`` that applies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..toolkit.errors import optional
from ..toolkit.messages import Message
from .evaluation_sets import EvaluationSets, grams, words

REASONS = {
    "stub": "an empty turn, or a one-line answer of very few words",
    "unfinished": "a turn that did not end within its limit of tokens",
    "role-marker": "a turn that contains the marker of a role or another special token",
    "repetition": "a turn that repeats itself",
    "over-long": "more tokens than the limit of a dialogue, or than the model can read",
    "refusal": "nothing but refusals from the assistant",
    "duplicate": "the text of an earlier dialogue, apart from case, spaces and punctuation",
    "near-duplicate": "almost the text of an earlier dialogue (MinHash)",
    "contaminated": "a run of words in common with an evaluation set",
}

_ROLE_MARKER = re.compile(
    r"<\|[a-z_]{2,30}\|>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?s>"
    r"|^\s*#{2,3} ?(?:Instruction|Response|Human|Assistant|User|System)\b"
    r"|^\s*(?:Human|User|Assistant|System|AI) ?:",
    re.IGNORECASE | re.MULTILINE,
)
_REFUSAL = re.compile(
    r"^\W*(?:(?:i'?m|i am) (?:very |really |so )?(?:sorry|afraid|unable)|sorry\b|i apologi[sz]e|unfortunately,? i"
    r"|i (?:cannot|can'?t|can not|won'?t|do not|don'?t|am not able)|as an? (?:ai|artificial|large|language)\b)",
    re.IGNORECASE,
)
REFUSAL_WORDS = 60  # words; a longer answer says more than no
RUN = 8  # repetitions of one word in a row
LINES = 3  # repetitions of one line
GRAM = 4  # words in a run whose repetition counts
PERMUTATIONS = 128  # of MinHash
SHINGLE = 3  # words in a run that MinHash compares


@dataclass(frozen=True)
class Limits:
    """Limits of the filters.

    min_words: a one-line answer with fewer words is a stub.
    max_tokens: of a whole dialogue.
    repetition: the largest share of a turn's 4-grams that may be repetitions.
    near: the Jaccard similarity of word 3-grams from which two dialogues are near duplicates; None: not checked.
    """

    min_words: int = 5
    max_tokens: int = 2048
    repetition: float = 0.3
    near: float | None = None


class Filters:
    """Rejects dialogues, and remembers the dialogues that passed. ``specials``: the tokenizer's special tokens, as
    texts.
    """

    def __init__(self, limits: Limits, specials: Sequence[str] = (), evaluation: EvaluationSets | None = None) -> None:
        self.limits, self.specials, self.evaluation = limits, tuple(specials), evaluation
        self.counts: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._near = None if limits.near is None else NearDuplicates(limits.near)

    def count(self, reason: str) -> None:
        self.counts[reason] += 1

    def report(self) -> dict[str, int]:
        """How many dialogues were seen, were kept, and were rejected for each reason. Leaves out filters that did not
        run.
        """
        idle = {"near-duplicate"} if self._near is None else set()
        idle |= {"contaminated"} if self.evaluation is None else set()
        kept = {"seen": sum(self.counts.values()), "kept": self.counts[""]}
        return {**kept, **{reason: self.counts[reason] for reason in REASONS if reason not in idle}}

    def turn(self, role: str, text: str, finished: bool) -> str:
        """The reason to reject a dialogue because of this turn, or ''."""
        if not text or (
            role == "assistant" and finished and "\n" not in text and len(words(text)) < self.limits.min_words
        ):
            return "stub"
        if not finished:
            return "unfinished"
        if _ROLE_MARKER.search(text) or any(special in text for special in self.specials):
            return "role-marker"
        return "repetition" if repeats(text, self.limits.repetition) else ""

    def dialogue(self, messages: Sequence[Message], tokens: int) -> str:
        """The reason to reject a whole dialogue, or ''. Remembers a dialogue that passes."""
        if tokens > self.limits.max_tokens:
            return "over-long"
        if all(is_refusal(message["content"]) for message in messages if message["role"] == "assistant"):
            return "refusal"
        text = " ".join(words(" ".join(m["content"] for m in messages if m["role"] != "system")))
        if text in self._seen:
            return "duplicate"
        if self._near is not None and self._near.has(text):
            return "near-duplicate"
        if self.evaluation is not None and self.evaluation.overlaps(m["content"] for m in messages):
            return "contaminated"
        self._seen.add(text)
        if self._near is not None:
            self._near.add(text)
        return ""


class NearDuplicates:
    """Finds near duplicates by MinHash with locality-sensitive hashing (datasketch)."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._library = optional("datasketch", "the filter of near duplicates")
        self._index = self._library.MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
        self._last: tuple[str, Any] = ("", None)
        self._size = 0

    def has(self, text: str) -> bool:
        return bool(self._index.query(self._signature(text)))

    def add(self, text: str) -> None:
        self._index.insert(self._size, self._signature(text))
        self._size += 1

    def _signature(self, text: str) -> Any:
        if self._last[0] != text:
            signature = self._library.MinHash(num_perm=PERMUTATIONS)
            signature.update_batch([gram.encode() for gram in grams(text.split(" "), SHINGLE) or [text]])
            self._last = (text, signature)
        return self._last[1]


def repeats(text: str, share: float) -> bool:
    """Whether a line occurs three times, a word eight times in a row, or more than ``share`` of the word 4-grams are
    repetitions.
    """
    lines = Counter(line.strip() for line in text.splitlines() if len(words(line)) >= 3)
    if lines and max(lines.values()) >= LINES:
        return True
    tokens = words(text)
    run = 1
    for before, token in zip(tokens, tokens[1:]):
        run = run + 1 if token == before else 1
        if run >= RUN:
            return True
    four_grams = grams(tokens, GRAM)
    return len(four_grams) >= 2 * RUN and 1 - len(set(four_grams)) / len(four_grams) > share


def is_refusal(text: str) -> bool:
    return len(words(text)) <= REFUSAL_WORDS and _REFUSAL.search(text.replace("\u2019", "'")) is not None
