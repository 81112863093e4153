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

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the checkout, for Code.retention

from Code.retention.scores import contains

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
        mean = sum(lengths) / len(lengths)
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
        SystemExit: the file is not SQuAD 2.0's.
    """
    try:
        for one in json.loads(file.read_text(encoding="utf-8"))["data"]:
            paragraphs = one["paragraphs"]
            contexts = (" ".join(paragraph["context"].split()) for paragraph in paragraphs)
            article = Article(one["title"].replace("_", " "), tuple(contexts))
            for at, paragraph in enumerate(paragraphs if len(paragraphs) > PASSAGES else []):
                for asked in paragraph["qas"]:
                    given = (
                        [] if asked["is_impossible"] else [" ".join(each["text"].split()) for each in asked["answers"]]
                    )
                    if given or asked["is_impossible"]:
                        answers = tuple(text for text, _ in Counter(given).most_common())
                        yield Question(" ".join(asked["question"].split()), answers, at, article)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(
            f"{file}: expected SQuAD 2.0's JSON (data, paragraphs, qas, is_impossible), found {error!r}"
        ) from None


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
        SystemExit: there are too few questions.
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
        raise SystemExit(
            f"expected {dict(wanted)} questions, found only {dict(found)}. Ask for fewer, or give more files."
        )
    return rng.sample(list(rows.values()), count)


def split(questions: Sequence[Question], share: float, rng: random.Random) -> tuple[list[Question], list[Question]]:
    """(questions of training, questions of the test), by articles; ``share``: of the articles, for the test."""
    titles = sorted({question.article.title for question in questions})
    if len(titles) < 2:
        raise SystemExit(f"expected two articles or more with over {PASSAGES} paragraphs, found {len(titles)}")
    held_out = set(rng.sample(titles, max(1, round(share * len(titles)))))
    parts = [[one for one in questions if (one.article.title in held_out) is test] for test in (False, True)]
    return parts[0], parts[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="dev-v2.0.json, train-v2.0.json or both")
    parser.add_argument("--out", type=Path, default=Path("squad-rag"), metavar="DIR", help="default: squad-rag")
    parser.add_argument("--train", type=int, default=2000, metavar="N", help="rows (default: 2000)")
    parser.add_argument("--test", type=int, default=500, metavar="N", help="rows (default: 500)")
    parser.add_argument("--words", type=int, default=120, metavar="N", help="of a passage, at most (default: 120)")
    parser.add_argument("--test-articles", type=float, default=0.25, metavar="SHARE", help="default: 0.25")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    parts = split([question for file in args.files for question in read(file)], args.test_articles, rng)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, questions, count in zip(("train", "test"), parts, (args.train, args.test)):
        rows = sample(questions, count, args.words, rng)
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
        (args.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        articles = len({one["cluster"] for one in rows})
        print(f"{args.out / name}.jsonl: {count} questions about {articles} articles")


if __name__ == "__main__":
    main()
