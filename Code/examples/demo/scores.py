"""What was learned: an answer against the expected one, as reading-comprehension benchmarks score it."""

from __future__ import annotations

import re
import string

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation + "\u2019")


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (the rule of SQuAD)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(answer: str, expected: str) -> bool:
    return normalise(answer) == normalise(expected)


def contains(answer: str, expected: str) -> bool:
    """The expected words appear in the answer, in order and whole: "1935" is not in "19350"."""
    return f" {normalise(expected)} " in f" {normalise(answer)} "
