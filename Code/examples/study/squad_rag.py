"""Makes a RAG data set out of SQuAD 2.0: passages of one Wikipedia article, a question, a short answer or none.

    python Code/examples/study/squad_rag.py dev-v2.0.json --out squad-rag

Reads the official file (rajpurkar.github.io/SQuAD-explorer; Rajpurkar et al. 2018, arXiv 1806.03822; CC BY-SA 4.0) and
writes train.jsonl and test.jsonl for the study's --task-train and --task-test. Each prompt has three passages: the one
with the answer, and of the same article the two nearest to the question by BM25 that do not contain an answer. 15 % of
the questions have no answer: for two thirds of these the passage with the answer is left out, the others are SQuAD's
own. Training and test share no article. A test row has all gold answers, and its article as "cluster".
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the checkout, for Code.retention and Code.toolkit

from Code.retention.scores import contains
from Code.toolkit.errors import Refusal, message
from Code.toolkit.files import read_json
from Code.toolkit.messages import shown
from Code.toolkit.options import positive, share

NONE = "I don't know"
UNANSWERABLE, OWN = 0.15, 1 / 3  # share of all questions; share of these that are SQuAD's own
PASSAGES = 3
TASK = (
    "Answer the question using only the passages below. Give a short answer copied from the passages. "
    f'If the passages do not contain the answer, reply "{NONE}".'
)
K1, B = 1.5, 0.75  # BM25's usual constants


@dataclass(frozen=True)
class Question:
    """``answers``: all gold answers, the most frequent first; empty if SQuAD says that there is none. ``passage``: the
    place of the paragraph in ``article`` about which the question was asked.
    """

    text: str
    answers: tuple[str, ...]
    passage: int
    article: Article


@dataclass(frozen=True)
class Article:
    title: str
    passages: tuple[str, ...]

    def nearest(self, question: str) -> list[int]:
        """The places of all passages, the nearest to the question first, by BM25 over the article's passages."""
        documents = [Counter(words(passage)) for passage in self.passages]
        lengths = [sum(document.values()) for document in documents]
        mean = sum(lengths) / len(lengths) or 1  # passages of punctuation alone have no words
        scores = [0.0] * len(documents)
        for word in set(words(question)):
            having = sum(word in document for document in documents)
            weight = log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            for at, document in enumerate(documents):
                count = document[word]
                scores[at] += weight * count * (K1 + 1) / (count + K1 * (1 - B + B * lengths[at] / mean))
        return sorted(range(len(scores)), key=lambda at: -scores[at])


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def read(file: Path) -> Iterator[Question]:
    """The questions of the articles that have enough passages.

    Raises:
        Refusal: the file is not SQuAD 2.0's. The refusal names the file, and the place in it.
    """
    for number, one in enumerate(member(read_json(file), "data", list, file, "")):
        place = f"data[{number}]"
        title = member(one, "title", str, file, place).replace("_", " ")
        paragraphs = member(one, "paragraphs", list, file, place)
        places = [f"{place}.paragraphs[{at}]" for at in range(len(paragraphs))]
        contexts = (text(paragraph, "context", file, at) for paragraph, at in zip(paragraphs, places))
        article = Article(title, tuple(contexts))
        for at, paragraph in enumerate(paragraphs if len(paragraphs) > PASSAGES else []):
            for nth, asked in enumerate(member(paragraph, "qas", list, file, places[at])):
                inner = f"{places[at]}.qas[{nth}]"
                impossible = member(asked, "is_impossible", bool, file, inner)
                gold = [] if impossible else member(asked, "answers", list, file, inner)
                given = [text(each, "text", file, f"{inner}.answers[{which}]") for which, each in enumerate(gold)]
                if given or impossible:
                    answers = tuple(answer for answer, _ in Counter(given).most_common())
                    question = " ".join(member(asked, "question", str, file, inner).split())
                    yield Question(question, answers, at, article)


KINDS = {list: "a list", str: "a text", bool: "true or false"}


def member(value: Any, name: str, kind: type, file: Path, place: str) -> Any:
    """``value[name]``, which must be of a kind. ``place``: that of ``value`` in the file, for the refusal."""
    if not isinstance(value, dict):
        raise Refusal("not-squad", f"{file} is not SQuAD 2.0's JSON", f"{place or 'the file'}: an object", shown(value))
    if not isinstance(value.get(name), kind):
        where = f"{place}.{name}" if place else name
        found = shown(value[name]) if name in value else "nothing"
        raise Refusal("not-squad", f"{file} is not SQuAD 2.0's JSON", f"{where}: {KINDS[kind]}", found)
    return value[name]


def text(value: Any, name: str, file: Path, place: str) -> str:
    """A member that is a text with something in it, with single spaces."""
    found = " ".join(member(value, name, str, file, place).split())
    if not found:
        what = f"{place}.{name}: a text with a word in it"
        raise Refusal("not-squad", f"{file} is not SQuAD 2.0's JSON", what, shown(value[name]))
    return found


def row(question: Question, left_out: bool, most: int, rng: random.Random) -> dict[str, Any] | None:
    """A row, or None where the article has too few passages without the answer.

    Args:
        left_out: whether to leave out the passage that the question is about.
        most: words of a passage; a longer one is cut, not through the answer.
    """
    article, answers = question.article, question.answers
    without = [
        article.passages[at]
        for at in article.nearest(question.text)
        if at != question.passage and not any(contains(article.passages[at], answer) for answer in answers)
    ]
    gold = [] if left_out else [cut(article.passages[question.passage], answers, most)]
    chosen = gold + [cut(passage, (), most) for passage in without[: PASSAGES - len(gold)]]
    if len(chosen) < PASSAGES or (answers and gold and not any(answer in gold[0] for answer in answers)):
        return None
    rng.shuffle(chosen)
    passages = "\n\n".join(f"[{number}] {article.title}: {passage}" for number, passage in enumerate(chosen, 1))
    answerable = bool(answers) and not left_out
    return {
        "prompt": f"{TASK}\n\n{passages}\n\nQuestion: {question.text}\nAnswer:",
        "answer": list(answers) if answerable else [NONE],
        "answerable": answerable,
        "cluster": article.title,
    }


def cut(passage: str, answers: Sequence[str], most: int) -> str:
    """At most ``most`` words of the passage, from its beginning; later ones if the first answer ends after these."""
    every = passage.split(" ")
    if answers:
        before = passage.find(answers[0])
        last = len(passage[: before + len(answers[0])].split(" "))
        first = max(0, last - most)
    else:
        first = 0
    return " ".join(every[first : first + most])


def sample(questions: Sequence[Question], count: int, most: int, rng: random.Random) -> list[dict[str, Any]]:
    """``count`` rows in random order, no prompt twice.

    Raises:
        Refusal: there are too few questions.
    """
    nothing = round(count * UNANSWERABLE)
    own = round(nothing * OWN)
    wanted = {"answer": count - nothing, "left out": nothing - own, "own": own}
    rows: dict[str, dict[str, Any]] = {}
    found: Counter[str] = Counter()
    for question in rng.sample(questions, len(questions)):
        open_kinds = ["answer", "left out"] if question.answers else ["own"]
        kind = max(open_kinds, key=lambda one: wanted[one] - found[one])
        if found[kind] == wanted[kind]:
            continue
        made = row(question, kind == "left out", most, rng)
        if made and made["prompt"] not in rows:
            rows[made["prompt"]] = made
            found[kind] += 1
    if len(rows) < count:
        raise Refusal(
            "too-few", "there are too few questions", f"{wanted}", f"{dict(found)}", "ask for fewer, or give more files"
        )
    return rng.sample(list(rows.values()), count)


def split(questions: Sequence[Question], part: float, rng: random.Random) -> tuple[list[Question], list[Question]]:
    """(questions of training, questions of the test), by articles; ``part``: of the articles, for the test."""
    titles = sorted({question.article.title for question in questions})
    if len(titles) < 2:
        what = f"two or more with over {PASSAGES} paragraphs"
        raise Refusal("too-few", "there are too few articles", what, str(len(titles)))
    count = min(max(1, round(part * len(titles))), len(titles) - 1)  # one for each part, at least
    held_out = set(rng.sample(titles, count))
    parts = [[one for one in questions if (one.article.title in held_out) is test] for test in (False, True)]
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="dev-v2.0.json, train-v2.0.json or both")
    parser.add_argument("--out", type=Path, default=Path("squad-rag"), metavar="DIR", help="default: squad-rag")
    parser.add_argument("--train", type=positive, default=2000, metavar="N", help="rows (default: 2000)")
    parser.add_argument("--test", type=positive, default=500, metavar="N", help="rows (default: 500)")
    parser.add_argument("--words", type=positive, default=120, metavar="N", help="of a passage, at most (default: 120)")
    parser.add_argument("--test-articles", type=share, default=0.25, metavar="SHARE", help="default: 0.25")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.out.exists() and not args.out.is_dir():
        parser.error(f"--out: {args.out} is there, and is no folder")
    try:
        write(args)
    except (Refusal, OSError) as error:
        sys.exit(message(error))


def write(args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    parts = split([question for file in args.files for question in read(file)], args.test_articles, rng)
    wanted = {"train": args.train, "test": args.test}
    made = {name: sample(part, wanted[name], args.words, rng) for name, part in zip(wanted, parts)}
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in made.items():
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
        (args.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        articles = len({one["cluster"] for one in rows})
        print(f"{args.out / name}.jsonl: {len(rows)} questions about {articles} articles")


if __name__ == "__main__":
    main()
