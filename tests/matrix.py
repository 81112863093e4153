"""Do the patches work, not only apply? Pairs of releases in real environments: install, verify, two training steps.

    python tests/matrix.py                            all of matrix_pairs.txt (two hours or so)
    python tests/matrix.py transformers==4.40.2       its pairs; also peft==0.10.0, or both
    python tests/matrix.py --docs                     put what the last runs gave into docs/releases.md

Run it with an interpreter that has torch, numpy, accelerate and safetensors. Each transformers release gets a virtual
environment of its own with that very wheel and the peft of the pair, installed by pip; torch and what else fits comes
from the running interpreter, and what does not fit (tokenizers, huggingface-hub, numpy, …) is installed for it.
A pair that fails is tried again with the stock files, to tell what is ours from what is theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matrix_pairs  # noqa: E402
from matrix_environments import Environments, Failure, run, tiny_model  # noqa: E402

from selfaug_patcher.maintain import wheels  # noqa: E402

START, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"


def pairs() -> list[tuple[str, str]]:
    return matrix_pairs.pairs(matrix_pairs.read())


def train(python: Path, work: Path) -> list[dict[str, float]]:
    """Two optimiser steps of the example script, as it is; what it logged."""
    output = work / "adapter"
    shutil.rmtree(output, ignore_errors=True)
    model = work / "model"
    script = [python, ROOT / "Code" / "examples" / "train_lora.py", "--model", model, "--data", model / "train.jsonl"]
    run(
        [*script, "--output", output, "--max-steps", "2", "--batch-size", "4", "--warmup-steps", "0", "--lr", "0.02"],
        work,
    )
    log = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "loss" in entry]


def prove(environments: Environments, work: Path, checkout: Path = ROOT) -> dict[str, str]:
    """Install, verify, train, revert, with the patcher of this checkout.

    Returns:
        ``checks``: how many checks of `verify` held; ``kl``: the KL at the second step.

    Raises:
        Failure: a step failed, or a check does not hold.
    """

    def patcher(verb: str) -> str:
        with named(verb):
            return run([sys.executable, "-m", "selfaug_patcher", verb, "--python", environments.python], checkout)

    patcher("install")
    checks = re.findall(r"^ok +(?!.*: left out: )(.+)", patcher("verify"), re.MULTILINE)
    if not any(check.startswith("exact") for check in checks):
        raise Failure(f"verify: expected: the checks of the trial; found: {len(checks)} others")
    with named("two training steps"):
        first, second = train(environments.python, work)[:2]
        if abs(first.get("selfaug/kl", -1.0)) > 1e-6 or not second.get("selfaug/kl", 0.0) > 1e-6:
            raise Failure(f"expected: KL 0, then more; found: {first.get('selfaug/kl')}, {second.get('selfaug/kl')}")
    patcher("revert")
    return {"checks": str(len(checks)), "kl": f"{second['selfaug/kl']:.2e}"}


@contextlib.contextmanager
def named(step: str) -> Iterator[None]:
    """A failure says which step it was."""
    try:
        yield
    except Failure as failure:
        raise Failure(f"{step}: {failure}") from None


def matrix(
    wanted: list[tuple[str, str]],
    work: Path,
    results: Path,
    resume: bool = False,
    full: bool = False,
    checkout: Path = ROOT,
) -> list[dict[str, str]]:
    """Run the pairs. ``results`` gets their rows beside those that it has; a full run that resumes none begins anew."""
    shutil.rmtree(work / "model", ignore_errors=True)
    tiny_model(work / "model")
    environments = Environments(work)
    rows = {} if full and not resume else read(results)
    now = ""
    for number, (transformers, peft) in enumerate(wanted, 1):
        if resume and rows.get((transformers, peft), {}).get("kl"):
            continue
        began = time.monotonic()
        row = {"transformers": transformers, "peft": peft, "checks": "", "kl": "", "failed": "", "stock": ""}
        try:
            if transformers != now:
                if now:
                    environments.remove()
                environments.create(transformers)
                now = transformers
            environments.install(wheels.fetch("peft", peft))
            environments.warm()
            row.update(prove(environments, work, checkout))
        except (Failure, subprocess.TimeoutExpired) as failure:
            row["failed"] = str(failure)
            row["stock"] = stock_outcome(environments, work, transformers, peft)
            now = ""
            environments.remove()
        rows[transformers, peft] = row
        results.write_text(json.dumps(list(rows.values()), indent=1))
        outcome = (
            f"{row['checks']} checks hold, KL {row['kl']}"
            if row["kl"]
            else f"FAILED: {row['failed']}\n      stock: {row['stock']}"
        )
        print(
            f"{number:>3}/{len(wanted)}  {transformers:<9} {peft:<8} {time.monotonic() - began:4.0f} s  {outcome}",
            flush=True,
        )
    return [rows[pair] for pair in wanted]


def read(results: Path) -> dict[tuple[str, str], dict[str, str]]:
    rows = json.loads(results.read_text()) if results.exists() else []
    return {(row["transformers"], row["peft"]): row for row in rows}


def stock_outcome(environments: Environments, work: Path, transformers: str, peft: str) -> str:
    """What the same training does in a fresh environment with the stock files."""
    try:
        environments.remove()
        environments.create(transformers)
        environments.install(wheels.fetch("peft", peft))
        train(environments.python, work)
    except (Failure, subprocess.TimeoutExpired) as failure:
        return f"fails too: {failure}"
    return "works"


def line(row: dict[str, str]) -> str:
    good = f"{row.get('checks') or 'ok'} | {row['kl']} nats"
    bad = f"fails in stock, too | `{row['stock'].removeprefix('fails too: ')}`"
    return f"| {row['transformers']} | {row['peft']} | {good if row['kl'] else bad} |"


def write_docs(results: dict[tuple[str, str], dict[str, str]], path: Path) -> None:
    """Each pair of matrix_pairs.txt with its last result; of one that was not run here, the line that the page has."""
    before, rest = path.read_text().split(START)
    old, after = rest.split(END)
    lines = {tuple(text.split()[1:4:2]): text for text in old.split("\n") if text.endswith(" |")}
    lines.update({pair: line(row) for pair, row in results.items()})
    ours = [pair for pair, row in results.items() if not row["kl"] and row["stock"] == "works"]
    for transformers, peft in pairs():
        if (transformers, peft) in ours or (transformers, peft) not in lines:
            what = "fails with SelfAug only" if (transformers, peft) in ours else "was not run"
            raise Failure(
                f"{path.name} is as it was: transformers {transformers} beside peft {peft} {what}\n"
                f"do: python tests/matrix.py transformers=={transformers} peft=={peft}"
            )
    shown = [lines[pair] for pair in pairs()]
    heads = "| transformers | peft | checks that hold | two training steps, KL at the second |\n|---|---|---|---|"
    count = f"{sum(text.endswith(' nats |') for text in shown)} of {len(shown)} work."
    path.write_text("\n".join([before + START, heads, *shown, "", count, END + after]))


def release(text: str) -> tuple[str, str]:
    package, _, version = text.partition("==")
    if package not in ("transformers", "peft") or not version:
        raise argparse.ArgumentTypeError(f"expected transformers==VERSION or peft==VERSION, found {text!r}")
    return package, version


def choose(releases: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of matrix_pairs.txt with these releases; any pair, where both are given."""
    chosen = dict(releases)
    if len(chosen) < len(releases):
        raise Failure(f"expected a package once, found {' '.join('=='.join(each) for each in releases)}")
    if len(chosen) == 2:
        return [(chosen["transformers"], chosen["peft"])]
    wanted = [pair for pair in pairs() if chosen.items() <= dict(zip(("transformers", "peft"), pair)).items()]
    if not wanted:
        raise Failure(f"{matrix_pairs.PATH.name} has no {' '.join(releases[0])}: put it in, or give both packages")
    return wanted


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", type=release, metavar="PACKAGE==VERSION", help="only pairs with these")
    parser.add_argument("--work", type=Path, help="folder for the environments (default: a temporary one)")
    parser.add_argument("--resume", action="store_true", help="leave out the pairs that the last run found good")
    parser.add_argument(
        "--results", type=Path, default=wheels.cache().parent / "matrix.json", help="JSON of the last runs"
    )
    parser.add_argument("--docs", action="store_true", help="only write what the last runs gave into docs/releases.md")
    options = parser.parse_args()
    try:
        if options.docs:
            if not options.results.exists():
                raise Failure(f"no results in {options.results}: run python tests/matrix.py PACKAGE==VERSION first")
            write_docs(read(options.results), ROOT / "docs" / "releases.md")
            return 0
        wanted = choose(options.releases)
    except Failure as failure:
        parser.error(str(failure))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="selfaug-matrix-") as temporary:
        work = options.work or Path(temporary)
        work.mkdir(exist_ok=True)
        rows = matrix(wanted, work.resolve(), options.results, options.resume, full=not options.releases)
    ours = [row for row in rows if row["failed"] and row["stock"] == "works"]
    print(f"{sum(bool(row['kl']) for row in rows)} of {len(rows)} pairs work, {len(ours)} fail that work in stock")
    return 1 if ours or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
