"""Do the patches work, not only apply? Pairs of releases in real environments: install, verify, two training steps.

    python tests/matrix.py                            all of PAIRS (an hour or so)
    python tests/matrix.py transformers==4.40.2       its pairs; also peft==0.10.0, or both
    python tests/matrix.py --docs                     put what the last runs gave into docs/releases.md

Run it with an interpreter that has torch, numpy, accelerate and safetensors. Each transformers release gets a virtual
environment of its own with that very wheel and the peft of the pair, installed by pip; torch and what else fits comes
from the running interpreter, and what does not fit (tokenizers, huggingface-hub, numpy, …) is installed for it.
A pair that fails is tried again with the stock files, to tell what is ours from what is theirs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from matrix_environments import Environments, Failure, run, tiny_model  # noqa: E402

from selfaug_patcher.maintain import wheels  # noqa: E402

# transformers, a peft of its era, a peft of another. Every distinct modeling_qwen2.py and layer.py is here
# (tests/pins/test_matrix.py sees to it).
PAIRS = """
4.37.0    0.7.1   0.13.2
4.38.2    0.8.2   0.13.2
4.39.3    0.9.0   0.6.0
4.40.2    0.10.0  0.6.1
4.41.2    0.11.1  0.6.0
4.42.4    0.12.0  0.6.2
4.43.1    0.12.0  0.15.2
4.43.4    0.12.0  0.8.2
4.44.0    0.12.0  0.16.0
4.44.2    0.12.0  0.17.0
4.45.0    0.13.2  0.17.1
4.46.0    0.13.2  0.7.1
4.46.3    0.14.0  0.8.1
4.47.1    0.14.0  0.19.0
4.48.2    0.14.0  0.18.1
4.48.3    0.14.0  0.9.0
4.49.0    0.14.0  0.21.2
4.50.3    0.15.2  0.21.0
4.51.3    0.15.2  0.6.1
4.52.0    0.15.2  0.6.2
4.53.0    0.16.0  0.7.1
4.53.3    0.17.0  0.8.1
4.55.4    0.17.1  0.8.2
4.57.3    0.17.1  0.9.0
4.57.6    0.18.1  0.6.0
5.0.0rc0  0.17.1  0.12.0
5.0.0rc1  0.17.1  0.7.1
5.0.0rc2  0.18.1  0.13.2
5.0.0     0.18.1  0.7.1
5.1.0     0.18.1  0.8.1
5.3.0     0.18.1  0.8.2
5.10.0    0.19.1  0.9.0
5.14.1    0.20.0  0.10.0
5.17.0    0.21.0  0.11.1
5.18.0    0.21.2  0.12.0
5.20.2    0.21.2  0.14.0
5.22.2    0.21.2  0.19.0
5.23.0    0.21.2  0.15.2
5.24.0    0.21.2  0.14.0
"""

START, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"


def pairs() -> list[tuple[str, str]]:
    rows = [line.split() for line in PAIRS.split("\n") if line]
    return [(transformers, peft) for transformers, *pefts in rows for peft in pefts]


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


def prove(environments: Environments, work: Path) -> str:
    """Install, verify, train. Returns what was seen, or raises Failure."""
    patcher = [sys.executable, "-m", "selfaug_patcher"]
    python = ["--python", environments.python]
    run([*patcher, "install", *python], ROOT)
    run([*patcher, "verify", *python], ROOT)
    first, second = train(environments.python, work)[:2]
    if abs(first.get("selfaug/kl", -1.0)) > 1e-6 or not second.get("selfaug/kl", 0.0) > 1e-6:
        raise Failure(f"KL per step: {first.get('selfaug/kl')}, {second.get('selfaug/kl')}; expected 0, then more")
    run([*patcher, "revert", *python], ROOT)
    return f"{second['selfaug/kl']:.2e}"


def matrix(
    wanted: list[tuple[str, str]], work: Path, results: Path, resume: bool = False, full: bool = False
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
        row = {"transformers": transformers, "peft": peft, "kl": "", "failed": "", "stock": ""}
        try:
            if transformers != now:
                if now:
                    environments.remove()
                environments.create(transformers)
                now = transformers
            environments.install(wheels.fetch("peft", peft))
            environments.warm()
            row["kl"] = prove(environments, work)
        except (Failure, subprocess.TimeoutExpired) as failure:
            row["failed"] = str(failure)
            row["stock"] = stock_outcome(environments, work, transformers, peft)
            now = ""
            environments.remove()
        rows[transformers, peft] = row
        results.write_text(json.dumps(list(rows.values()), indent=1))
        outcome = f"ok, KL {row['kl']}" if row["kl"] else f"FAILED: {row['failed']}\n      stock: {row['stock']}"
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
    good = f"ok | {row['kl']} nats"
    bad = f"fails in stock, too | `{row['stock'].removeprefix('fails too: ')}`"
    return f"| {row['transformers']} | {row['peft']} | {good if row['kl'] else bad} |"


def write_docs(results: dict[tuple[str, str], dict[str, str]], path: Path) -> None:
    """Each pair of PAIRS with its last result; of a pair that was not run here, the line that the page has."""
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
    heads = "| transformers | peft | checks | two training steps, KL at the second |\n|---|---|---|---|"
    count = f"{sum(' | ok | ' in text for text in shown)} of {len(shown)} work."
    path.write_text("\n".join([before + START, heads, *shown, "", count, END + after]))


def release(text: str) -> tuple[str, str]:
    package, _, version = text.partition("==")
    if package not in ("transformers", "peft") or not version:
        raise argparse.ArgumentTypeError(f"expected transformers==VERSION or peft==VERSION, found {text!r}")
    return package, version


def choose(releases: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs with these releases; one that PAIRS lacks, where both are given."""
    chosen = dict(releases)
    if len(chosen) < len(releases):
        raise Failure(f"expected a package once, found {' '.join('=='.join(each) for each in releases)}")
    if len(chosen) == 2:
        return [(chosen["transformers"], chosen["peft"])]
    wanted = [pair for pair in pairs() if chosen.items() <= dict(zip(("transformers", "peft"), pair)).items()]
    if not wanted:
        raise Failure(f"PAIRS has no {' '.join(releases[0])}: put it in, or give both packages")
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
