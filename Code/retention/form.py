"""The form of an answer, which fine-tuning on short answers changes first: does it hold a list, is it one word?"""

from __future__ import annotations

import re

_ITEM = re.compile(r"^[ \t]*(?:[-*+\u2022\u2013]|\(?\d{1,3}[.):]|\(?[a-zA-Z][.)])[ \t]+\S", re.MULTILINE)


def has_list(text: str) -> bool:
    """At least two lines that begin with a bullet, a number or a letter."""
    return len(_ITEM.findall(text)) >= 2


def one_word(text: str) -> bool:
    """At most one word: also true for an empty answer."""
    return len(text.split()) <= 1
