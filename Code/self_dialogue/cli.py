"""SA-SFT, "Talking to Yourself" (arXiv 2602.20162): mixing the model's own dialogues into the task data preserves what
the model could do before fine-tuning. The fine-tuning itself does not change, with or without SelfAug's loss.

    python -m selfaug.self_dialogue generate --model NAME_OR_PATH --count 1000 --out dialogues.jsonl
    python -m selfaug.self_dialogue mix --task task.jsonl --dialogues dialogues.jsonl --ratio 0.2 --out train.jsonl
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal, message, print_anything
from ..toolkit.files import check_text
from . import commands, formats, manifest, mixture
from .dialogues import TOPIC_PROMPT, Plan
from .filters import REASONS, Limits
from .generator import BACKENDS


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0: done, 1: refused, 2: wrong usage, 130: interrupted."""
    print_anything()
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (Refusal, OSError) as error:
        print(f"{message(error)}\n{args.out} was not written.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        goes_on = " The same command continues from here." if args.run is generate else ""
        print(f"\nstopped; {args.out} was not written.{goes_on}", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m selfaug.self_dialogue",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = whole.add_subparsers(required=True, metavar="VERB")
    _generate(verbs.add_parser("generate", help="the model writes dialogues with itself"))
    _mix(verbs.add_parser("mix", help="put task data and dialogues into one shuffled file"))
    return whole


def _generate(verb: Any) -> None:
    verb.set_defaults(run=generate)
    verb.add_argument("--model", required=True, help="the model to fine-tune: a name on the hub, or a folder")
    verb.add_argument("--revision", help="revision of a model on the hub")
    verb.add_argument("--out", required=True, type=Path, help=".jsonl, .json or .parquet")
    verb.add_argument("--overwrite", action="store_true", help="replace --out and --rejected if they exist")
    size = verb.add_argument_group("how much: one of").add_mutually_exclusive_group(required=True)
    size.add_argument("--count", type=_whole, help="dialogues to keep")
    size.add_argument("--tokens", type=_whole, help="assistant tokens to keep")
    size.add_argument("--ratio", type=_ratio, help="share of the dialogues in the mixture with --task, 0 to 1")
    verb.add_argument("--task", type=Path, nargs="+", default=[], help="with --ratio: the task data")
    verb.add_argument("--by", choices=list(mixture.BY), default="examples", help="what --ratio counts")

    text = verb.add_argument_group("dialogues")
    text.add_argument("--turns", type=_whole, default=1, help="number of user turns and answers (default: 1)")
    text.add_argument("--topics", type=Path, help="start dialogues from these topics, one per line")
    text.add_argument(
        "--topic-prompt",
        type=_text,
        default=TOPIC_PROMPT,
        help="asks for a user's message; {topic} is replaced",
    )
    text.add_argument("--system", type=_text, help="system message (default: none is given to the template)")
    text.add_argument("--template", help="chat template instead of the tokenizer's: plain, or a file with Jinja")
    text.add_argument("--format", choices=formats.FORMATS, default="messages", help="of --out (default: messages)")
    text.add_argument("--render", action="store_true", help="prompt-completion: render prompts with the chat template")

    sampling = verb.add_argument_group("sampling")
    sampling.add_argument("--temperature", type=_at_least_zero, default=0.7)
    sampling.add_argument("--top-p", type=_share, default=0.9)
    sampling.add_argument("--user-tokens", type=_whole, default=Plan.user_tokens, help="limit of a user turn")
    sampling.add_argument("--answer-tokens", type=_whole, default=Plan.answer_tokens, help="limit of an answer")
    sampling.add_argument("--seed", type=int, default=0)
    sampling.add_argument("--batch", type=_whole, default=Plan.batch, help=f"turns at a time (default: {Plan.batch})")
    sampling.add_argument("--backend", choices=list(BACKENDS), default="transformers")
    sampling.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"], default="auto")
    sampling.add_argument("--device", help="default: the accelerator if there is one, else the CPU")

    filters = verb.add_argument_group("filters")
    filters.add_argument("--min-words", type=int, default=Limits.min_words, help="minimum of a one-line answer")
    filters.add_argument("--max-tokens", type=_whole, default=Limits.max_tokens, help="limit of a dialogue")
    filters.add_argument(
        "--repetition", type=_share, default=Limits.repetition, help="limit of repeated 4-grams, a share"
    )
    filters.add_argument("--near", type=_near, help="Jaccard similarity of near duplicates, or off (default: 0.8)")
    filters.add_argument("--decontaminate", type=Path, nargs="+", default=[], metavar="FILE", help="evaluation sets")
    filters.add_argument("--ngram", type=_whole, default=13, help="words in a row that count as overlap (default: 13)")
    filters.add_argument("--rejected", type=Path, help="JSONL file for the rejected dialogues and their reasons")


def _mix(verb: Any) -> None:
    verb.set_defaults(run=mix)
    verb.add_argument("--task", required=True, type=Path, nargs="+", help="task data, one or more files of one format")
    verb.add_argument("--dialogues", required=True, type=Path, help="the output of generate")
    verb.add_argument("--out", required=True, type=Path, help=".jsonl, .json or .parquet")
    verb.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    verb.add_argument("--ratio", type=_ratio, help="share of the dialogues in the whole (default: all dialogues)")
    verb.add_argument("--by", choices=list(mixture.BY), default="examples", help="what --ratio counts")
    verb.add_argument("--format", choices=formats.FORMATS, help="format of --out (default: that of the task)")
    verb.add_argument("--render", action="store_true", help="prompt-completion: render prompts with the chat template")
    verb.add_argument(
        "--template", help="with --render or --anchors: plain, or a Jinja file, instead of the tokenizer's template"
    )
    verb.add_argument("--tokenizer", help="counts the tokens (default: the tokenizer of the model in the manifest)")
    verb.add_argument(
        "--anchors", action="store_true", help="write input_ids and labels; dialogues have none, for SELFAUG_ANCHORS=1"
    )
    verb.add_argument("--seed", type=int, default=0, help="seed of the shuffle")


def generate(args: argparse.Namespace) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    facts = commands.generate(args)
    filters = facts["filters"]["report"]
    print(f"{filters['kept']} of {filters['seen']} dialogues kept")
    for reason, count in filters.items():
        if reason in REASONS:
            print(f"  {count:6}  {reason}: {REASONS[reason]}")
    if "near-duplicate" not in filters:
        print("          near duplicates: not checked")
    kept, speed = facts["kept"], facts["generated"]
    print(f"{kept['examples']} dialogues, {kept['trained_tokens']} assistant tokens, {kept['tokens']} tokens in all")
    print(f"{speed['tokens']} tokens in {speed['seconds']:.1f} s, {speed['tokens_per_second']:.0f} tokens/s")
    print(f"{args.out}\n{manifest.path_of(args.out)}")
    return 0


def mix(args: argparse.Namespace) -> int:
    facts = commands.mix(args)
    print(f"{'':12}{'examples':>12}{'trained tokens':>16}{'all tokens':>14}")
    for name in ("task", "dialogues"):
        counts = [facts[name][column] for column in ("examples", "trained_tokens", "tokens")]
        print(f"{name:12}" + "".join(f"{_shown(n):>{width}}" for n, width in zip(counts, (12, 16, 14))))
    shares = [facts["share"][column] for column in ("examples", "trained_tokens", "tokens")]
    percent = ["?" if share is None else f"{share:.1%}" for share in shares]
    print(f"{'share':12}" + "".join(f"{text:>{width}}" for text, width in zip(percent, (12, 16, 14))))
    if facts["task"]["tokens"] is None:
        print("tokens were not counted: give --tokenizer, since the manifest names no model that can be loaded")
    print(f"{args.out} ({facts['format']})\n{manifest.path_of(args.out)}")
    return 0


def _shown(number: int | None) -> str:
    return "?" if number is None else str(number)


def _number(text: str, what: str, low: float, high: float, open_ends: bool = False) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (low < number < high if open_ends else low <= number <= high):
        raise argparse.ArgumentTypeError(f"{what}, not {text!r}")
    return number


def _text(text: str) -> str:
    try:
        check_text(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"UTF-8 text, not {text!r}") from None
    return text


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"a whole number > 0, not {text!r}")
    return int(text)


def _ratio(text: str) -> float:
    return _number(text, "between 0 and 1", 0, 1, open_ends=True)


def _share(text: str) -> float:
    return _number(text, "more than 0, at most 1", 1e-9, 1)


def _at_least_zero(text: str) -> float:
    return _number(text, "a number >= 0", 0, 100)


def _near(text: str) -> float:
    return 0.0 if text == "off" else _number(text, "off, or more than 0 and at most 1", 1e-9, 1)
