"""Scores of an answer against the accepted answers, by the rules of reading-comprehension benchmarks."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation + "\u2019")


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (the rule of SQuAD)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def with_articles(text: str) -> str:
    return " ".join(text.lower().translate(PUNCTUATION).split())


def as_it_stands(text: str) -> str:
    return " ".join(text.lower().split())


def normalised(answer: str, expected: str) -> tuple[str, str]:
    """Answer and expected answer by the rule of SQuAD. If that rule leaves nothing of the expected answer ("A" in a
    multiple choice, or "+"), a weaker rule takes its place; otherwise every answer would be wrong.
    """
    rule = next((rule for rule in (normalise, with_articles) if rule(expected)), as_it_stands)
    return rule(answer), rule(expected)


def exact_match(answer: str, expected: str) -> bool:
    ours, theirs = normalised(answer, expected)
    return ours == theirs


def contains(answer: str, expected: str) -> bool:
    """Whether the answer contains the expected words, in order and as whole words: "1935" is not in "19350"."""
    ours, theirs = normalised(answer, expected)
    return f" {theirs} " in f" {ours} "


def f1(answer: str, expected: str) -> float:
    """Harmonic mean of precision and recall over the normalised words, 0 to 1."""
    ours, theirs = (text.split() for text in normalised(answer, expected))
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))


def score(answer: str, accepted: Sequence[str]) -> dict[str, float]:
    """Each score, against whichever accepted answer gives the highest."""
    return {
        "exact_match": float(any(exact_match(answer, one) for one in accepted)),
        "contains": float(any(contains(answer, one) for one in accepted)),
        "f1": max(f1(answer, one) for one in accepted),
    }
