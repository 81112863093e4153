"""Measure what adapters have learned from a task, and how much of the base model's behaviour they have kept.

    python -m selfaug.retention --base MODEL --adapter lora=DIR --adapter selfaug=DIR --task task.jsonl --out DIR
    python -m selfaug.retention --history RUN

Writes items/NAME.json (every single answer), retention.json, retention.md and plots into --out. A second run measures
only what is new. With --history, only draws what the Trainer logged in the folder of a run. docs/retention.md says
what each figure means.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal, message, optional, print_anything
from . import harness_results, history, plots, prompts, report, summary, training_log
from .items import Items

NAME = re.compile(r"[\w.+-]+")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0: done, 1: refused, 2: wrong usage, 130: interrupted."""
    print_anything()
    args = _checked(parser(), argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if args.history:
            show(args.history)
        else:
            run(args)
    except (Refusal, OSError) as error:
        print(message(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; {args.out} keeps the figures so far. The same command continues from here.", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog=f"python -m {__package__}", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("--base", metavar="MODEL", help="name on the hub, or a folder")
    whole.add_argument(
        "--adapter", action="append", metavar="[NAME=]DIR", help="once per adapter, or per tuned "
        "model; the others are compared with the first",
    )  # fmt: skip
    whole.add_argument("--out", type=Path, metavar="DIR", help="folder for the figures")
    whole.add_argument(
        "--history", type=Path, metavar="RUN", help="draw the log of a run into RUN/history.png, and stop"
    )

    kept = whole.add_argument_group("kept")
    kept.add_argument("--general", type=Path, metavar="FILE", help="general instructions (default: those of SelfAug)")
    kept.add_argument("--general-count", type=_whole, metavar="N", help="take N of them, evenly (default: all)")
    kept.add_argument("--answer-limit", type=_whole, default=128, metavar="N", help="tokens (default: 128)")

    kept.add_argument("--probes", action="store_true", help="tool calls, system prompts, thinking, plain questions")

    learned = whole.add_argument_group("learned")
    learned.add_argument("--task", type=Path, metavar="FILE", help="questions with answers, JSONL")
    learned.add_argument("--task-count", type=_whole, metavar="N", help="take N of them, evenly (default: all)")
    learned.add_argument("--task-answer-limit", type=_whole, default=32, metavar="N", help="tokens (default: 32)")
    learned.add_argument(
        "--input-count", type=_count, metavar="N", help="measure the KL at the input positions of N of them, evenly "
        "(default: all; 0: none)",
    )  # fmt: skip

    whole.add_argument(
        "--lm-eval", action="append", default=[], metavar="NAME=FILE_OR_DIR", help="results of lm-evaluation-harness "
        "for the base model (base=…) or an adapter, for the same table",
    )  # fmt: skip
    model = whole.add_argument_group("model")
    model.add_argument("--batch-size", type=_whole, default=24, metavar="N", help="answers at a time (default: 24)")
    model.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    model.add_argument("--device", help="default: the accelerator if there is one, else the CPU")
    model.add_argument("--template", help="chat template instead of the tokenizer's: plain, or a file with Jinja")
    return whole


def _checked(whole: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    args = whole.parse_args(argv)
    missing = [name for name in ("base", "adapter", "out") if getattr(args, name) is None]
    if args.history is None and missing:
        whole.error(f"the following arguments are required: {', '.join(f'--{name}' for name in missing)}")
    if args.history is not None and len(missing) < 3:
        whole.error("--history draws one run and takes no --base, --adapter or --out")
    return args


def show(run: Path) -> None:
    """Draw the log of one run, and print its summary.

    Raises:
        Refusal: there is no such log, or matplotlib is not installed.
    """
    optional("matplotlib.figure", "--history")
    print("\n".join(history.picture(run)))


def run(args: argparse.Namespace) -> None:
    """Measure, and write everything.

    Raises:
        Refusal: an option, a file or a model does not fit. What can be checked without the model is checked before the
            model loads.
    """
    existing = next(path for path in (args.out, *args.out.absolute().parents) if path.exists())
    if not existing.is_dir():
        what = f"--out {args.out} cannot be a folder"
        raise Refusal("no-folder", what, found=f"the file {existing}", do="another --out")
    adapters = named(args.adapter)
    results = benchmarks(args.lm_eval, adapters)
    general = prompts.general(args.general, args.general_count)
    task = prompts.task(args.task, args.task_count) if args.task else []

    from ..toolkit.models import usable_device
    from . import probes
    from .base_model import BaseModel, tuned_hash
    from .measurement import Measurement, Plan

    hashes = {name: tuned_hash(folder) for name, folder in adapters.items()}
    base_model = BaseModel(args.base, args.dtype, usable_device(args.device), args.template)
    inputs = len(task) if args.input_count is None else args.input_count
    asked, left_out = probes.collect(base_model.chat) if args.probes else ([], {})
    for name, reason in left_out.items():
        print(f"probe {name} left out: {reason}", flush=True)
    plan = Plan(general, task, args.answer_limit, args.task_answer_limit, args.batch_size, inputs, asked)
    measurement = Measurement(base_model, plan, args.out / "items")
    base = measurement.base()
    models = {summary.BASE: base}
    for name, folder in adapters.items():
        models[name] = measurement.adapter(name, folder, base)
        measurement.complete(base, models[name])
    settings = {
        "base": args.base,
        "adapters": {name: {"folder": str(folder), "sha256": hashes[name]} for name, folder in adapters.items()},
        "compared_with": next(iter(adapters)),
        "general": {"file": args.general and str(args.general), "count": len(general), "limit": plan.answer_limit},
        "task": {"file": args.task and str(args.task), "count": len(task), "limit": plan.task_answer_limit},
        "dtype": args.dtype,
        "batch_size": args.batch_size,
    }
    if args.probes:
        settings["probes"] = {"count": len(asked), "limit": probes.LIMIT, "left_out": left_out}
    result: dict[str, Any] = {"settings": settings, **summary.summarise(models, task)}
    for name, figures in results.items():
        result["models"][name]["lm_eval"] = figures
    write(args.out, result)
    draw(args.out, result, models, adapters)


def draw(folder: Path, result: dict[str, Any], models: dict[str, Items], adapters: dict[str, Path]) -> None:
    logs = {name: training_log.logs(adapter) for name, adapter in adapters.items()}
    try:
        for file in plots.draw(result, models, logs, folder):
            print(file)
    except ImportError as error:
        print(f"no plots: they need matplotlib ({error}); pip install matplotlib, and run the same command again")


def write(folder: Path, result: dict[str, Any]) -> None:
    files = {"retention.json": json.dumps(result, indent=1) + "\n", "retention.md": report.markdown(result)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
        print(folder / name)


def named(given: Sequence[str]) -> dict[str, Path]:
    """Adapter folders by name: NAME of NAME=DIR, or the folder's own name.

    Raises:
        Refusal: two adapters have the same name, or a name has other characters than ``NAME`` allows.
    """
    folders: dict[str, Path] = {}
    for one in given:
        name, equals, folder = one.partition("=")
        if not equals or not NAME.fullmatch(name):
            name, folder = Path(one).resolve().name, one
        if not NAME.fullmatch(name) or name.startswith("."):
            raise Refusal("bad-name", "this is no name for an adapter", "letters, digits, . _ + -", name, "NAME=DIR")
        if name in folders or name == summary.BASE:
            raise Refusal("bad-name", f"the name {name} is taken", do="--adapter NAME=DIR with another NAME")
        folders[name] = Path(folder)
    return folders


def benchmarks(given: Sequence[str], adapters: dict[str, Path]) -> dict[str, dict[str, dict[str, float]]]:
    """Figures of lm-evaluation-harness, by the name of the model.

    Raises:
        Refusal: no adapter has that name, or a file holds no results.
    """
    results: dict[str, dict[str, dict[str, float]]] = {}
    known = (summary.BASE, *adapters)
    for one in given:
        name, _, path = one.partition("=")
        if name not in known or not path:
            raise Refusal("bad-name", "--lm-eval: of which model are these results?", f"NAME=…, {known}", one)
        results.setdefault(name, {}).update(harness_results.read(Path(path)))
    return results


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _whole(text: str) -> int:
    if _count(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
