"""What the two verbs of :mod:`.self_dialogue` do, from options to files: generate, mix, and their manifests."""

from __future__ import annotations

import importlib.util
import logging
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import manifest, mixture, rows
from .chat import Chat
from .dialogue_log import DialogueLog
from .dialogues import Plan, Writer, Written
from .filters import Filters, Limits
from .generator import BACKENDS, default_device
from .nucleus import Sampling
from .overlap import EvaluationSets
from .refusal import Refusal
from .rowfiles import RowWriter, dumps
from .tally import Tally, tally

DEFAULT_NEAR = 0.8
logger = logging.getLogger(__name__)


def generate(args: Namespace) -> dict[str, Any]:
    """Write ``args.out`` and its manifest, going on from the log of an interrupted run; the manifest's facts.

    Raises:
        Refusal: before the model is loaded wherever it can be.
    """
    _free(args)
    if (args.ratio is not None) != bool(args.task):
        raise Refusal("usage", "--ratio and --task go together")
    topics = _topics(args.topics)
    limits = Limits(args.min_words, args.max_tokens, args.repetition, _near(args.near))
    evaluation = EvaluationSets(args.decontaminate, args.ngram) if args.decontaminate else None
    sampling = Sampling(args.temperature, args.top_p)
    plan = Plan(
        args.turns,
        args.user_tokens,
        args.answer_tokens,
        args.batch,
        args.seed,
        args.system,
        topics,
        args.topic_prompt,
    )
    Filters(limits)  # near duplicates need a library: know before the model is loaded
    generator = BACKENDS[args.backend](
        args.model, args.dtype, args.device or default_device(), args.revision, sampling, args.seed
    )
    chat = Chat(generator.tokenizer, args.template, generator.eos)
    filters = Filters(limits, chat.special_texts(), evaluation)
    settings = {
        **generator.facts,
        "backend": generator.name,
        "template_sha256": chat.sha256,
        **asdict(sampling),
        **asdict(plan),
    }
    log = DialogueLog(_log(args.out), settings)
    writer = Writer(generator, chat, plan, filters, log)
    goal_name, goal = _goal(args, generator.tokenizer)
    kept = _Kept(goal_name, goal)
    try:
        with RowWriter(args.out) as out, _rejected(args.rejected) as rejected, _bar(goal, goal_name, writer) as bar:
            for dialogue in writer.dialogues(kept.share):
                if dialogue.reason:
                    rejected.write(dumps({"reason": dialogue.reason, "messages": dialogue.messages}))
                    continue
                out.write(dumps(rows.row(dialogue.messages, args.format, chat if args.render else None)))
                own = Tally(1, dialogue.answer_tokens, dialogue.answer_tokens + dialogue.user_tokens)
                kept.add(own)
                bar.update(getattr(own, goal_name))
    except ValueError as error:  # a dialogue that the format cannot hold
        raise Refusal("other-format", str(error), do="another --format") from None
    finally:
        log.close()
    facts = {
        "kind": "self-dialogues (SA-SFT, arXiv 2602.20162)",
        **settings,
        "topics": None if args.topics is None else {"count": len(topics), "sha256": manifest.sha256(args.topics)},
        "goal": {goal_name: goal},
        "filters": {
            **asdict(limits),
            "decontaminate": {str(file): manifest.sha256(file) for file in args.decontaminate},
            "ngram": args.ngram,
            "report": filters.report(),
        },
        "format": args.format,
        "kept": asdict(kept.tally),
        "generated": _speed(writer.written),
    }
    manifest.write(args.out, facts)
    log.remove()
    return facts


def mix(args: Namespace) -> dict[str, Any]:
    """Write ``args.out`` and its manifest; the manifest's facts."""
    _free(args)
    tokenizer = _tokenizer(args)
    if args.render and tokenizer is None:
        raise Refusal("no-tokenizer", "--render needs the chat template", do="--tokenizer NAME_OR_PATH")
    chat = Chat(tokenizer) if args.render else None
    found = mixture.mix(
        args.task, args.dialogues, args.out, args.ratio, args.by, args.seed, args.format, tokenizer, chat
    )
    facts = {
        "kind": "mixture of task data and self-dialogues",
        "sources": {str(file): manifest.sha256(file) for file in [*args.task, args.dialogues]},
        "ratio": args.ratio,
        "by": args.by,
        "seed": args.seed,
        **found.facts(),
    }
    manifest.write(args.out, facts)
    return facts


def _free(args: Namespace) -> None:
    if args.out.exists() and not args.overwrite and not _log(args.out).exists():
        raise Refusal("exists", f"{args.out} is there already", do="another --out, or --overwrite")


def _log(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def _topics(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ()
    if not file.is_file():
        raise Refusal("no-file", f"there is no file {file}")
    topics = tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
    if not topics:
        raise Refusal("no-rows", f"{file} has no topics", expected="one per line")
    return topics


def _near(given: float | None) -> float | None:
    """The default is to look for near duplicates where the library is installed; the report says whether it did."""
    if given is None:
        return DEFAULT_NEAR if importlib.util.find_spec("datasketch") else None
    return given or None


def _goal(args: Namespace, tokenizer: Any) -> tuple[str, float]:
    if args.count is not None:
        return "examples", args.count
    if args.tokens is not None:
        return "trained_tokens", args.tokens
    task = Tally(0, 0, 0)
    for file in args.task:
        task += tally(file, tokenizer)
    return mixture.BY[args.by], max(1, round(mixture.wanted(args.ratio, task, args.by)))


def _tokenizer(args: Namespace) -> Any:
    """The named tokenizer or, if it can be had, that of the model which wrote the dialogues."""
    name = args.tokenizer or manifest.read(args.dialogues).get("model")
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        if args.tokenizer:
            raise Refusal("no-tokenizer", f"cannot load {name}", found=str(error).splitlines()[0]) from None
        logger.warning("cannot load %s, which the manifest names", name)
        return None


class _Kept:
    """What is kept so far, as a share of the goal."""

    def __init__(self, goal_name: str, goal: float) -> None:
        self.tally, self.goal_name, self.goal = Tally(0, 0, 0), goal_name, goal

    def add(self, own: Tally) -> None:
        self.tally += own

    def share(self) -> float:
        return float(getattr(self.tally, self.goal_name) / self.goal)


class _Nowhere:
    def __enter__(self) -> _Nowhere:
        return self

    def __exit__(self, *error: object) -> None: ...

    def write(self, line: bytes) -> None: ...


def _rejected(file: Path | None) -> Any:
    return _Nowhere() if file is None else RowWriter(file)


def _bar(goal: float, unit: str, writer: Writer) -> Any:
    """Dialogues or tokens kept, with the time left; tokens per second of what the model writes beside it."""
    from tqdm.auto import tqdm

    bar = tqdm(total=goal, unit=" " + {"examples": "dialogues"}.get(unit, "tokens"), desc="self-dialogue", smoothing=0)

    def show(written: Written) -> None:
        bar.set_postfix_str(f"{_speed(written)['tokens_per_second']:.0f} tokens/s, {written.turns} turns")

    writer.written.observers.append(show)
    return bar


def _speed(written: Written) -> Mapping[str, float]:
    seconds = written.seconds
    rate = written.tokens / seconds if seconds else 0.0
    return {"turns": written.turns, "tokens": written.tokens, "seconds": seconds, "tokens_per_second": rate}
