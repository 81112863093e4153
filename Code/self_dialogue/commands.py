"""The two verbs of :mod:`.cli`, generate and mix: from options to files and their manifests."""

from __future__ import annotations

import importlib.util
import logging
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..toolkit.chat import Chat
from ..toolkit.errors import Refusal
from ..toolkit.files import dumps, sha256, text_lines
from ..toolkit.messages import Message
from ..toolkit.models import load_tokenizer, usable_device
from ..toolkit.rows import RowWriter
from . import formats, manifest, mixture
from .dialogue_log import DialogueLog
from .dialogues import Plan, Writer, Written
from .evaluation_sets import EvaluationSets
from .filters import Filters, Limits
from .generator import BACKENDS
from .sampling import Sampling
from .token_counts import Counts, count_file, count_row

DEFAULT_NEAR = 0.8
logger = logging.getLogger(__name__)


def generate(args: Namespace) -> dict[str, Any]:
    """Write ``args.out`` and its manifest, and return the manifest's facts. Continues an interrupted run from its log.

    Raises:
        Refusal: an option, a file or the model does not fit. What can be checked without the model is checked before
            the model loads.
    """
    log_file = args.out.with_name(f"{args.out.name}.log")
    kept_rows, rejected_rows = _writers(args, log_file.exists())
    if (args.ratio is not None) != bool(args.task):
        raise Refusal("usage", "--ratio and --task go together")
    for file in args.task:
        count_file(file)
    numbered = _topics(args.topics)
    topics = tuple(topic for _, topic in numbered)
    limits = Limits(args.min_words, args.max_tokens, args.repetition, _near(args.near))
    evaluation = EvaluationSets(args.decontaminate, args.ngram) if args.decontaminate else None
    sampling = Sampling(args.temperature, args.top_p)
    lengths = (args.turns, args.user_tokens, args.answer_tokens)
    plan = Plan(*lengths, args.batch, args.seed, args.system, topics, args.topic_prompt)
    Filters(limits)  # imports the library for near duplicates: a missing library is known before the model loads
    generator = BACKENDS[args.backend](
        args.model, args.dtype, usable_device(args.device), args.revision, sampling, args.seed
    )
    chat = Chat(generator.tokenizer, args.template, generator.eos)
    _check_template(chat, plan, args.topics, numbered)
    filters = Filters(limits, chat.special_texts(), evaluation)
    settings = {
        **generator.facts,
        "backend": generator.name,
        "template_sha256": chat.sha256,
        **asdict(sampling),
        **asdict(plan),
    }
    log = DialogueLog(log_file, settings)
    writer = Writer(generator, chat, plan, filters, log)
    goal_name, goal = _goal(args, generator.tokenizer)
    kept = _Kept(goal_name, goal)
    try:
        with rejected_rows as rejected, kept_rows as out, _bar(goal, goal_name, writer) as bar:
            for dialogue in writer.dialogues(kept.share):
                if dialogue.reason:
                    if rejected is not None:
                        rejected.write(dumps({"reason": dialogue.reason, "messages": dialogue.messages}))
                    continue
                content = _row(dialogue.messages, args.format, chat if args.render else None)
                out.write(dumps(content))
                counts = count_row(content, args.format, generator.tokenizer)  # mix counts in the same way
                kept.add(counts)
                bar.update(getattr(counts, goal_name))
    finally:
        log.close()
    facts = {
        "kind": "self-dialogues (SA-SFT, arXiv 2602.20162)",
        **settings,
        "topics": None if args.topics is None else {"count": len(topics), "sha256": sha256(args.topics)},
        "goal": {goal_name: goal},
        "filters": {
            **asdict(limits),
            "decontaminate": {str(file): sha256(file) for file in args.decontaminate},
            "ngram": args.ngram,
            "report": filters.report(),
        },
        "format": args.format,
        "kept": asdict(kept.counts),
        "generated": _speed(writer.written),
    }
    manifest.write(args.out, facts)
    log.remove()
    return facts


def _row(messages: list[Message], format: str, chat: Chat | None) -> dict[str, Any]:
    try:
        return formats.row(messages, format, chat)
    except ValueError as error:
        raise Refusal("other-format", str(error), do="another --format") from None


def mix(args: Namespace) -> dict[str, Any]:
    """Write ``args.out`` and its manifest, and return the manifest's facts."""
    _free(args.out, "--out", args.overwrite)
    tokenizer = _tokenizer(args)
    if args.render and tokenizer is None:
        raise Refusal("no-tokenizer", "--render needs the chat template", do="--tokenizer NAME_OR_PATH")
    if args.anchors and (args.format or args.render):
        raise Refusal("usage", "--anchors writes token ids", do="leave out --format and --render")
    if args.anchors and tokenizer is None:
        raise Refusal("no-tokenizer", "--anchors writes token ids", do="--tokenizer NAME_OR_PATH")
    chat = Chat(tokenizer, args.template) if args.render or (args.anchors and args.template) else None
    mixed = mixture.mix(
        args.task,
        args.dialogues,
        args.out,
        args.ratio,
        args.by,
        args.seed,
        args.format,
        tokenizer,
        chat,
        args.anchors,
    )
    facts = {
        "kind": "mixture of task data and self-dialogues",
        "sources": {str(file): sha256(file) for file in [*args.task, args.dialogues]},
        "ratio": args.ratio,
        "by": args.by,
        "seed": args.seed,
        "anchors": args.anchors,
        **mixed.facts(),
    }
    manifest.write(args.out, facts)
    return facts


def _writers(args: Namespace, goes_on: bool) -> tuple[RowWriter, AbstractContextManager[RowWriter | None]]:
    """The writers of --out and --rejected, None without --rejected. ``goes_on``: an interrupted run may already have
    written both files.
    """
    _free(args.out, "--out", args.overwrite or goes_on)
    kept = RowWriter(args.out)
    if args.rejected is None:
        return kept, nullcontext()
    if args.rejected.resolve() == args.out.resolve():
        raise Refusal("usage", "--rejected and --out are the same file")
    _free(args.rejected, "--rejected", args.overwrite or (goes_on and args.out.exists()))  # --out is written first
    return kept, RowWriter(args.rejected)


def _free(file: Path, option: str, may_be_replaced: bool) -> None:
    if file.exists() and not may_be_replaced:
        raise Refusal("exists", f"{file} is there already", do=f"another {option}, or --overwrite")


def _topics(file: Path | None) -> list[tuple[int, str]]:
    """(line, topic) for each topic of a file."""
    if file is None:
        return []
    topics = text_lines(file)
    if not topics:
        raise Refusal("no-rows", f"{file} has no topics", expected="one per line")
    return topics


def _check_template(chat: Chat, plan: Plan, file: Path | None, topics: Sequence[tuple[int, str]]) -> None:
    """Raise Refusal, which says where it stands, for a system message or a topic that the chat template does not take.
    Otherwise a run might stop at it after hours.
    """
    where = "--system" if plan.system is not None else ""
    try:
        chat.text([*plan.start(), {"role": "user", "content": "Hello"}])
        for number, topic in topics:
            where = f"{file}:{number}"
            chat.prompt_text(plan.asked(topic))
    except Refusal as refusal:
        raise refusal.at(where) from None


def _near(given: float | None) -> float | None:
    """Without the option, near duplicates are looked for if datasketch is installed; the report says whether."""
    if given is None:
        return DEFAULT_NEAR if importlib.util.find_spec("datasketch") else None
    return given or None


def _goal(args: Namespace, tokenizer: Any) -> tuple[str, float]:
    if args.count is not None:
        return "examples", args.count
    if args.tokens is not None:
        return "trained_tokens", args.tokens
    task = Counts(0, 0, 0)
    for file in args.task:
        task += count_file(file, tokenizer)
    wanted = mixture.wanted(args.ratio, task, args.by)
    return mixture.BY[args.by], max(1, math.ceil(wanted) if args.by == "tokens" else round(wanted))


def _tokenizer(args: Namespace) -> Any:
    """The tokenizer of --tokenizer; without that option, that of the model which wrote the dialogues, if it loads."""
    name = args.tokenizer or manifest.read(args.dialogues).get("model")
    if not isinstance(name, str):
        return None
    try:
        return load_tokenizer(name)
    except Refusal as refusal:
        if args.tokenizer:
            raise Refusal("no-tokenizer", refusal.what, refusal.expected, refusal.found) from None
        logger.warning("cannot load %s, which the manifest names", name)
        return None


class _Kept:
    """Counts of the dialogues that were kept, and their share of the goal."""

    def __init__(self, goal_name: str, goal: float) -> None:
        self.counts, self.goal_name, self.goal = Counts(0, 0, 0), goal_name, goal

    def add(self, counts: Counts) -> None:
        self.counts += counts

    def share(self) -> float:
        return float(getattr(self.counts, self.goal_name) / self.goal)


def _bar(goal: float, unit: str, writer: Writer) -> Any:
    """A progress bar: dialogues or tokens kept, the time left, and how many tokens per second the model writes."""
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
