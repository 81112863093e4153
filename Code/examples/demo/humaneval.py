"""HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374): does a chat model still write code that works?

    python Code/examples/demo/humaneval.py FILE --base MODEL [--adapter DIR] --out OUT.jsonl

FILE is the official HumanEval.jsonl.gz (github.com/openai/human-eval). The model is shown a function's signature and
docstring, and answers greedily; the first code block of its answer runs with the problem's tests. OUT.jsonl has a row
for each problem: task_id, passed, length (tokens), ended, what went wrong, and the answer. A second run does only what
is missing.

These are not figures for comparison with published ones: the prompt is one of many, and an answer has at most 300
tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the checkout, for Code.retention

import code_process
import decoding
from humaneval_file import Problem, problems

from Code.retention.base_model import BaseModel, tuned_hash
from Code.retention.items import key
from Code.retention.prompts import Prompt
from Code.toolkit.errors import Refusal, message
from Code.toolkit.files import parse_json, sha256
from Code.toolkit.models import usable_device
from Code.toolkit.options import positive

ASKED = "Complete this Python function. Answer with the whole function in one code block.\n\n```python\n{}\n```"
BLOCK = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
LIMIT = 300  # tokens


def code_of(answer: str) -> str:
    """The first code block of an answer, which may have been cut off; the whole answer if it has no block."""
    block = BLOCK.search(answer)
    return block.group(1) if block else answer


def program(problem: Problem, answer: str) -> str:
    """The problem, which has imports and sometimes another function, then the answer's code, then the tests."""
    parts = [problem["prompt"], code_of(answer), problem["test"], f"check({problem['entry_point']})"]
    return "\n\n".join(parts) + "\n"


class Record:
    """The rows in ``file``, one for each problem that is done. The first line holds ``key``: rows of another model, or
    of other settings, are dropped.
    """

    def __init__(self, file: Path, key: str) -> None:
        self.file, self.rows = file, dict[str, dict[str, Any]]()
        try:
            first, *others = file.read_text(encoding="utf-8").splitlines()
            if parse_json(first)["key"] == key:
                for line in others:
                    row = parse_json(line)
                    self.rows[row["task_id"]] = row
        except (OSError, ValueError, KeyError, TypeError):
            pass  # no rows yet, a file that is not ours, or a last line that was not written to its end
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [{"key": key}, *self.rows.values()]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        self.rows[row["task_id"]] = row
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def measure(base: BaseModel, adapter: Path | None, file: Path, out: Path, batch_size: int) -> list[dict[str, Any]]:
    """The rows of all problems, in the order of the file. Writes each row as soon as its problem is done."""
    whole = problems(file)
    asked = [Prompt([{"role": "user", "content": ASKED.format(one["prompt"].strip())}]) for one in whole]
    ids = base.encode(asked, LIMIT)
    ending = base.ending
    own = tuned_hash(adapter) if adapter else None
    limits = [LIMIT, ending.tokens, ending.strings, code_process.SECONDS, code_process.MEMORY]
    record = Record(out, key(base.identity, own, sha256(file), ids, limits))
    left = [at for at, one in enumerate(whole) if one["task_id"] not in record.rows]
    label = adapter.name if adapter else "base"
    with ThreadPoolExecutor(1) as tests, _model(base, adapter if left else None) as model:  # tests run beside the model

        def finish(problem: Problem, written: list[int]) -> None:
            text, _, ended = base.chat.decode(written, ending)
            wrong = code_process.run(program(problem, text))
            row = {"task_id": problem["task_id"], "passed": not wrong, "length": len(written), "ended": ended}
            record.add({**row, "wrong": wrong, "answer": text})
            print(f"{label}, HumanEval: {len(record.rows)}/{len(whole)}", flush=True)

        found = decoding.answers(model, [ids[at] for at in left], LIMIT, ending.tokens, batch_size) if left else []
        for done in [tests.submit(finish, whole[left[at]], written) for at, written in found]:
            done.result()
    return [record.rows[one["task_id"]] for one in whole]


@contextmanager
def _model(base: BaseModel, adapter: Path | None) -> Iterator[Any]:
    """The base model, or the base model with an adapter."""
    if adapter is None:
        yield base.model
    else:
        with base.tuned(adapter) as tuned:
            yield tuned


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base", required=True, metavar="MODEL")
    parser.add_argument("--adapter", type=Path, metavar="DIR")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "auto"])
    parser.add_argument("--batch-size", type=positive, default=41, metavar="N", help="answers at a time (default: 41)")
    args = parser.parse_args()
    try:
        base = BaseModel(args.base, args.dtype, usable_device(None))
        rows = measure(base, args.adapter, args.file, args.out, args.batch_size)
    except (Refusal, OSError) as error:
        print(message(error), file=sys.stderr)
        return 1
    passed, lengths = [row["passed"] for row in rows], [row["length"] for row in rows]
    print(f"pass@1 {fmean(passed):.3f} ({sum(passed)} of {len(rows)}), median answer {median(lengths):.0f} tokens")
    return 0


if __name__ == "__main__":
    sys.exit(main())
