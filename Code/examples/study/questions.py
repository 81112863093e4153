"""The study's questions: about made-up entities, or from the user's own files. All seeds share one test; the training
questions vary with the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ragset import samples
from sandbox import StepFailed

from Code.toolkit import files, rows
from Code.toolkit.errors import Refusal
from Code.toolkit.messages import READ_BY_MODEL, empty, refuse_columns

HELD_OUT = [2]  # the number of the wording that no training sample has
TRAINED = [0, 1]
MODEL_FILES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}
ACCEPTED = 'rows {"messages": [user, assistant]} or {"prompt": …, "answer": … or [all accepted answers]}'


def synthetic(
    train: int, test: int, seed: int, unrelated: int = 0
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training rows with ``messages``, and test rows with ``prompt``, ``answer`` and ``answerable``.

    The test is the same for every seed, all its questions have a held-out wording, and no question's entity is in both.

    Args:
        unrelated: further passages in each training sample, about entities that no question is about.
    """
    taken: set[str] = set()
    held_out = [asdict(one) for one in samples(random.Random("test"), test, taken, HELD_OUT)]
    training = [{"messages": one.messages()} for one in samples(random.Random(seed), train, taken, TRAINED, unrelated)]
    return training, held_out


def of_files(
    train_file: Path, test_file: Path, train: int, test: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and test rows from the user's files. The seed draws the training rows; every seed has the same test.

    Raises:
        StepFailed: a file cannot be read or has too few rows, a row has another format, or a prompt is in both files.
    """
    trains, tests = (read(file) for file in (train_file, test_file))
    shared = {row["prompt"].strip() for row in trains} & {row["prompt"].strip() for row in tests}
    if shared:
        count = f"{len(shared)} prompt{'s' if len(shared) > 1 else ''}"
        raise StepFailed(
            f"{train_file} and {test_file}: expected no prompt in both, found {count}, such as "
            f"{json.dumps(min(shared)[-60:], ensure_ascii=False)}. A test on what was trained shows nothing. "
            "Remove them from one file. No run was begun."
        )
    training = random.Random(seed).sample(enough(trains, train, train_file, "--train"), train)
    held_out = random.Random("test").sample(enough(tests, test, test_file, "--test"), test)
    return [{"messages": messages(row)} for row in training], held_out


def messages(row: dict[str, Any]) -> list[dict[str, str]]:
    answer = row["answer"] if isinstance(row["answer"], str) else row["answer"][0]
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": answer}]


def enough(rows: list[dict[str, Any]], count: int, file: Path, option: str) -> list[dict[str, Any]]:
    """``rows``. Raises StepFailed if there are fewer than ``count``."""
    if len(rows) < count:
        size = len(rows)
        raise StepFailed(f"{file}: expected at least {count} rows, found {size}. Give more, or {option} {size}.")
    return rows


def fingerprint(file: Path) -> str:
    """The beginning of the sha256 of a file's text."""
    try:
        return hashlib.sha256(files.read_text(file).encode()).hexdigest()[:12]
    except (OSError, Refusal) as error:
        raise StepFailed(f"{file} cannot be read: {error}") from None


def folder_hash(model: Path) -> str:
    """sha256 over the files of a model's folder that a training reads: weights, config, tokenizer, template."""
    whole = hashlib.sha256()
    for file in sorted(model.iterdir()):
        if file.suffix in MODEL_FILES:
            whole.update(f"{file.name}\0".encode())
            files.add_to_hash(whole, file)
    return whole.hexdigest()


def read(file: Path) -> list[dict[str, Any]]:
    """Rows with ``prompt``, ``answer`` (a text, or all accepted texts) and, if the file has these columns,
    ``answerable`` and ``cluster``.

    Raises:
        StepFailed: the file cannot be read, or a row has another format. The message has file and line.
    """
    try:
        return [parse(row, f"{file}:{line}") for line, row in rows.rows(file, jsonl_by_default=True)]
    except (OSError, Refusal) as error:
        raise StepFailed(f"{file} cannot be read: {error}") from None


def parse(row: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        refuse_columns(row, READ_BY_MODEL, "the study cannot hold it")
        if "messages" in row:
            refuse_columns(row, ["prompt", "answer"], "messages are there already")
    except ValueError as error:
        raise StepFailed(f"{where}: expected {ACCEPTED}; {error}") from None
    texts = pair(row)
    if texts is None:
        raise StepFailed(f"{where}: expected {ACCEPTED}, both texts; found the columns {', '.join(row) or 'none'}")
    answerable = row.get("answerable")
    if not isinstance(answerable, (bool, type(None))):
        raise StepFailed(f"{where}: expected answerable to be true or false; found {json.dumps(answerable)[:40]}")
    cluster = row.get("cluster")
    if not isinstance(cluster, (str, type(None))):
        raise StepFailed(f"{where}: expected cluster to be a text; found {json.dumps(cluster)[:40]}")
    given = {"answerable": answerable, "cluster": cluster}
    kept = {name: value for name, value in given.items() if value is not None}
    return {"prompt": texts[0], "answer": texts[1], **kept}


def pair(row: dict[str, Any]) -> tuple[str, str | list[str]] | None:
    """(prompt, answer or all accepted answers), or None if the row has no accepted format."""
    if "messages" in row:
        try:
            (user, prompt), (assistant, answer) = [(turn["role"], turn["content"]) for turn in row["messages"]]
        except (TypeError, KeyError, ValueError):
            return None
        filled = {name for turn in row["messages"] for name, value in turn.items() if not empty(value)}
        if (user, assistant) != ("user", "assistant") or filled - {"role", "content"}:
            return None
    else:
        prompt, answer = row.get("prompt"), row.get("answer")
    several = isinstance(answer, list) and bool(answer) and all(isinstance(one, str) for one in answer)
    return (prompt, answer) if isinstance(prompt, str) and (several or isinstance(answer, str)) else None


def numbered(names: Sequence[str]) -> list[int]:
    """Each name as a number, equal names as the same; in the order in which they first appear, from 0."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return [numbers[name] for name in names]


def write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
