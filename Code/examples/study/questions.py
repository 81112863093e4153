"""The study's task: made-up entities, or the user's own. One test for all seeds; training varies with the seed."""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ragset import samples
from sandbox import StepFailed

sys.path.append(str(Path(__file__).resolve().parents[3]))
from Code.toolkit import files
from Code.toolkit.errors import Refusal
from Code.toolkit.messages import READ_BY_MODEL, empty, refuse_columns

HELD_OUT = [2]  # the wording of every question that no training sample has
TRAINED = [0, 1]
MODEL_FILES = {".safetensors", ".bin", ".json", ".jinja", ".model", ".txt"}
ACCEPTED = 'rows {"messages": [user, assistant]} or {"prompt": …, "answer": …}'


def synthetic(train: int, test: int, seed: int) -> tuple[list[dict], list[dict]]:
    """Training rows with ``messages``, and test rows with ``prompt``, ``answer`` and ``answerable``.

    The test is the same for every seed and in held-out wordings throughout; no entity of it is in training.
    """
    taken: set[str] = set()
    held_out = [asdict(one) for one in samples(random.Random("test"), test, taken, HELD_OUT)]
    training = [{"messages": one.messages()} for one in samples(random.Random(seed), train, taken, TRAINED)]
    return training, held_out


def of_files(train_file: Path, test_file: Path, train: int, test: int, seed: int) -> tuple[list[dict], list[dict]]:
    """The same from two JSONL files: ``train`` rows that the seed draws, and the same ``test`` rows for every seed.

    Raises:
        StepFailed: a file that cannot be read or has too few rows, a row in another format, or a prompt in both.
    """
    rows, tests = (read(file) for file in (train_file, test_file))
    shared = {row["prompt"].strip() for row in rows} & {row["prompt"].strip() for row in tests}
    if shared:
        count = f"{len(shared)} prompt{'s' if len(shared) > 1 else ''}"
        raise StepFailed(
            f"{train_file} and {test_file}: expected no prompt in both, found {count}, such as "
            f"{json.dumps(min(shared)[-60:], ensure_ascii=False)}. A test on what was trained shows nothing. "
            "Take them out of one file. No run was begun."
        )
    training = random.Random(seed).sample(enough(rows, train, train_file, "--train"), train)
    held_out = random.Random("test").sample(enough(tests, test, test_file, "--test"), test)
    return [{"messages": messages(row)} for row in training], held_out


def messages(row: dict) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]


def enough(rows: list[dict], count: int, file: Path, option: str) -> list[dict]:
    if len(rows) < count:
        found = len(rows)
        raise StepFailed(f"{file}: expected at least {count} rows, found {found}. Give more, or {option} {found}.")
    return rows


def fingerprint(file: Path) -> str:
    """The beginning of the sha256 of a file's text."""
    return hashlib.sha256(text(file).encode()).hexdigest()[:12]


def folder_hash(model: Path) -> str:
    """sha256 over the files of a model's folder that a training reads: weights, config, tokenizer, template."""
    whole = hashlib.sha256()
    for file in sorted(model.iterdir()):
        if file.suffix in MODEL_FILES:
            whole.update(f"{file.name}\0".encode())
            with file.open("rb") as stream:
                while block := stream.read(1 << 20):
                    whole.update(block)
    return whole.hexdigest()


def text(file: Path) -> str:
    try:
        return files.read_text(file)
    except (OSError, Refusal) as error:
        raise unreadable(file, error) from None


def unreadable(file: Path, error: OSError | Refusal) -> StepFailed:
    return StepFailed(f"{file} cannot be read: {error}")


def read(file: Path) -> list[dict]:
    """Rows with ``prompt``, ``answer`` and, where the file has it, ``answerable``."""
    try:
        return [parse(line, f"{file}, line {number}") for number, line in files.lines(file)]
    except (OSError, Refusal) as error:
        raise unreadable(file, error) from None


def parse(line: str, where: str) -> dict:
    try:
        row = files.parse_json(line)
    except ValueError as error:
        raise StepFailed(f"{where}: not JSON ({error}). Expected JSONL: {ACCEPTED}") from None
    if not isinstance(row, dict):
        raise StepFailed(f"{where}: expected {ACCEPTED}; found {type(row).__name__}")
    try:
        refuse_columns(row, READ_BY_MODEL, "the study cannot hold it")
        if "messages" in row:
            refuse_columns(row, ["prompt", "answer"], "messages are there already")
    except ValueError as error:
        raise StepFailed(f"{where}: expected {ACCEPTED}; {error}") from None
    found = pair(row)
    if found is None:
        raise StepFailed(f"{where}: expected {ACCEPTED}, both texts; found the columns {', '.join(row) or 'none'}")
    answerable = row.get("answerable")
    if not isinstance(answerable, (bool, type(None))):
        raise StepFailed(f"{where}: expected answerable to be true or false; found {json.dumps(answerable)[:40]}")
    kept = {} if answerable is None else {"answerable": answerable}
    return {"prompt": found[0], "answer": found[1], **kept}


def pair(row: dict) -> tuple[str, str] | None:
    """Prompt and answer; None if the row is in no accepted format."""
    if "messages" in row:
        try:
            (user, prompt), (assistant, answer) = [(turn["role"], turn["content"]) for turn in row["messages"]]
        except (TypeError, KeyError, ValueError):
            return None
        more = {name for turn in row["messages"] for name, value in turn.items() if not empty(value)}
        if (user, assistant) != ("user", "assistant") or more - {"role", "content"}:
            return None
    else:
        prompt, answer = row.get("prompt"), row.get("answer")
    return (prompt, answer) if isinstance(prompt, str) and isinstance(answer, str) else None


def write(file: Path, rows: Iterable[dict]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
