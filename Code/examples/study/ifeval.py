"""Compares models on IFEval, prompt by prompt, from the samples that lm-evaluation-harness wrote (`--log_samples`).

    python Code/examples/study/ifeval.py base=results/base LoRA=results/lora SelfAug=results/selfaug --to base LoRA

Prints a Markdown table: the share of prompts whose instructions are all followed and the share of instructions that are
followed, both by the strict rules (Zhou et al. 2023, arXiv 2311.07911), and the differences to the models of --to. ± is
the standard error over prompts; differences are paired, with 95 % bootstrap intervals over prompts. --keep DIR writes
what the table needs, without prompts and answers, to DIR/NAME.jsonl; such a file can be given in place of the samples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the checkout, for Code.toolkit

import numpy
from resampling import Estimate, estimate

from Code.toolkit.errors import Refusal, message
from Code.toolkit.files import lines, parse_json
from Code.toolkit.tables import markdown

PROMPT, FOLLOWED = "prompt_hash", "inst_level_strict_acc"
EXPECTED = "samples of IFEval that lm_eval --log_samples wrote (samples_*ifeval*.jsonl), or the folder above them"

Answers = dict[str, list[bool]]  # a prompt's hash to which of its instructions the answer follows


def read(path: Path) -> Answers:
    """The answers in a file of samples, or in the latest one below a folder: names end in the time.

    Raises:
        Refusal: there is no such file, or a line is not a sample of IFEval.
    """
    files = sorted(path.rglob("samples_*ifeval*.jsonl"), key=lambda file: file.name) if path.is_dir() else [path]
    if not files:
        raise Refusal("no-samples", f"{path} has no samples", EXPECTED, "a folder without such a file")
    answers: Answers = {}
    for number, line in lines(files[-1]):
        try:
            sample = parse_json(line)
            prompt, followed = sample[PROMPT], sample[FOLLOWED]
            if not (isinstance(prompt, str) and followed and all(type(one) is bool for one in followed)):
                raise ValueError(f"{PROMPT} is {prompt!r}, {FOLLOWED} is {followed!r}")
        except (ValueError, KeyError, TypeError) as error:
            found = f"{type(error).__name__}: {error}"
            raise Refusal("no-sample", f"{files[-1]}:{number} is not a sample of IFEval", EXPECTED, found) from None
        if prompt in answers:
            raise Refusal("twice", f"{files[-1]}:{number}: this prompt was there before", "each prompt once")
        answers[prompt] = followed
    if not answers:
        raise Refusal("no-samples", f"{files[-1]} has no samples", EXPECTED, "an empty file")
    return answers


def same_prompts(models: dict[str, Answers]) -> None:
    """Raises:
    Refusal: two models were not asked the same prompts.
    """
    first, *others = models
    asked = {prompt: len(followed) for prompt, followed in models[first].items()}
    for name in others:
        if {prompt: len(followed) for prompt, followed in models[name].items()} != asked:
            shared = len(asked.keys() & models[name].keys())
            found = f"{len(asked)} and {len(models[name])} prompts, of which {shared} are shared"
            what = f"{first} and {name} did not answer the same prompts"
            raise Refusal("not-paired", what, "the same prompts with the same chat template", found)


def shares(ours: Answers, theirs: Answers | None = None) -> tuple[Estimate, Estimate]:
    """(prompts, instructions): the share followed; with ``theirs``, the difference of two models' shares. Resamples
    draw prompts, with all their instructions.
    """
    numbers = [number for number, followed in enumerate(ours.values()) for _ in followed]
    prompts = numpy.array([float(all(followed)) for followed in ours.values()])
    instructions = numpy.array([float(one) for followed in ours.values() for one in followed])
    if theirs is not None:
        prompts -= [all(theirs[prompt]) for prompt in ours]
        instructions -= [one for prompt in ours for one in theirs[prompt]]
    return estimate(prompts[None]), estimate(instructions[None], clusters=numbers)


def table(models: dict[str, Answers], to: Sequence[str]) -> str:
    rows = []
    for name, answers in models.items():
        cells = [f"{one.mean:.3f} ± {one.se:.3f}" for one in shares(answers)]
        for other in to:
            differences = shares(answers, models[other]) if other != name else ()
            cells += [f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]" for one in differences] or ["-", "-"]
        rows.append([name, *cells])
    heads = ["prompts", "instructions"]
    return markdown(["", *heads, *(f"{head}, to {other}" for other in to for head in heads)], rows, align_right=True)


def keep(models: dict[str, Answers], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, answers in models.items():
        kept = [json.dumps({PROMPT: prompt, FOLLOWED: followed}) for prompt, followed in answers.items()]
        (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=PATH", help="a name, and its folder or file of samples")
    parser.add_argument("--to", nargs="+", metavar="NAME", help="differences to these models (default: the first)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write what the table needs there, a file a model")
    args = parser.parse_args()
    given = [(name, path) for name, _, path in (one.partition("=") for one in args.models)]
    paths = dict(given)
    if not all(name and path and "/" not in name for name, path in given) or len(paths) < len(given):
        parser.error(f"expected NAME=PATH with a different NAME each, found {' '.join(args.models)}")
    to = args.to or [given[0][0]]
    for unknown in [name for name in to if name not in paths]:
        parser.error(f"--to {unknown}: expected one of {', '.join(paths)}")
    try:
        models = {name: read(Path(path)) for name, path in paths.items()}
        same_prompts(models)
        if args.keep:
            keep(models, args.keep)
    except (Refusal, OSError) as error:
        sys.exit(message(error))
    print(f"{len(models[given[0][0]])} prompts, {sum(map(len, models[given[0][0]].values()))} instructions\n")
    print(table(models, to))


if __name__ == "__main__":
    main()
