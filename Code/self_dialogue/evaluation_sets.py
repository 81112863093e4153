"""Evaluation sets, and whether a text overlaps with one: a run of words in common is the usual test of contamination
(GPT-3, arXiv 2005.14165, appendix C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..toolkit.files import text_lines
from ..toolkit.rows import rows

SHORTEST = 6  # words; shorter texts occur everywhere
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+(?:'[^\W_]+)?")


def words(text: str) -> list[str]:
    """Lower-case words without punctuation. In scripts without spaces, each character is a word."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


def grams(tokens: Sequence[str], size: int) -> list[str]:
    """All runs of ``size`` words."""
    return [" ".join(tokens[at : at + size]) for at in range(len(tokens) - size + 1)]


class EvaluationSets:
    """Remembers every run of ``size`` words of every text in the files, and the whole of texts of 6 to ``size - 1``
    words.
    """

    def __init__(self, files: Iterable[str | Path], size: int = 13) -> None:
        self.size = size
        self._grams: dict[int, set[str]] = {}
        for file in files:
            for text in _file_texts(Path(file)):
                tokens = words(text)
                length = min(len(tokens), size)
                if length >= min(SHORTEST, size):
                    self._grams.setdefault(length, set()).update(grams(tokens, length))

    def overlaps(self, texts: Iterable[str]) -> bool:
        """Whether any of the texts has a remembered run of words."""
        for text in texts:
            tokens = words(text)
            for length, known in self._grams.items():
                if not known.isdisjoint(grams(tokens, length)):
                    return True
        return False


def _file_texts(file: Path) -> Iterator[str]:
    if file.suffix == ".txt":
        yield from (line for _, line in text_lines(file))
    else:
        for _, row in rows(file):
            yield from _texts(row)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _texts(inner)
