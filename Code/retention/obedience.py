"""Does an answer obey its system prompt? No check accepts an empty or one-word answer."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..toolkit.files import Decoder

_LEAST_WORDS = 5
# frequent words of each language that the other languages here, English among them, do not have
_WORDS = {
    "fr": set("le les des est une et dans pour que qui il elle sont avec sur pas du au vous ce".split()),
    "de": set("der die das und ist ein eine nicht zu mit von auf den dem sich sie wir für wird sind".split()),
    "es": set("el los las es una y en por para que como del con se su al más son un lo".split()),
    "en": set("the a is of and to in it that for are with as on you this be or by can".split()),
}


def _language(answer: str, given: str) -> bool:
    words = re.findall(r"\w+", answer.casefold())
    counts = {language: sum(word in known for word in words) for language, known in _WORDS.items()}
    most = max(count for language, count in counts.items() if language != given)
    return counts[given] > most and counts[given] >= len(words) / 10


def _capitals(answer: str, given: str) -> bool:
    return answer == answer.upper() and answer != answer.lower()


def _dashes(answer: str, given: str) -> bool:
    lines = [line for line in answer.splitlines() if line.strip()]
    return len(lines) == int(given) and all(re.match(r"\s*- \S", line) for line in lines)


def _json(answer: str, given: str) -> bool:
    try:
        value = Decoder().decode(answer)
    except ValueError:
        return False
    return isinstance(value, dict) and list(value) == [given] and isinstance(value[given], str) and bool(value[given])


# name -> whether an answer, without the white space around it, obeys, given an argument
CHECKS: dict[str, Callable[[str, str], bool]] = {
    "language": _language,
    "begins": lambda answer, given: re.match(rf"\W*{re.escape(given)}\b", answer, re.IGNORECASE) is not None,
    "ends": lambda answer, given: answer.casefold().rstrip(".!\"*' ").endswith(given.casefold().rstrip(".")),
    "names": lambda answer, given: given.casefold() in answer.casefold(),
    "capitals": _capitals,
    "dashes": _dashes,
    "json": _json,
}


def obeyed(answer: str, check: str, given: str) -> bool:
    """Whether an answer of at least five words passes the check."""
    answer = answer.strip()
    return len(answer.split()) >= _LEAST_WORDS and CHECKS[check](answer, given)
