"""Measure what a training step costs: stock, SelfAug, its options, and the original's algorithm.

    python Code/benchmarks time --lengths 512 1024 --rounds 5      seconds, ratios to stock, and the FLOP floor
    python Code/benchmarks shares --lengths 1024                   where SelfAug's step spends its time
    python Code/benchmarks chunks --lengths 512                    speed of the loss alone, by chunk size
    python Code/benchmarks memory --lengths 2048 4096              peak of the tensors, each in a process of its own
    python Code/benchmarks meta --lengths 2048 4096                peak and FLOPs on the meta device, in seconds
    python Code/benchmarks shapes --lengths 2048 --checkpointing   the same of whole models
    python Code/benchmarks gpu                                     whole models on the GPU here, in under 8 minutes
    python Code/benchmarks page                                    docs/performance/*.json to tables and plots

Results are printed, and with ``--results FOLDER`` written there, one JSON file per verb: what the page shows is in
docs/performance/ and changes only where that folder is named. The packages are patched in memory; nothing is
installed. ``SELFAUG_*`` variables that are set take no part.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START = time.monotonic()  # of the budget of `gpu`
ROOT = Path(__file__).resolve().parents[2]
MAIN = ["stock", "off", "stock fused", "original", "selfaug", "sample 0.25", "economy", "cached", "reference given"]
WITHOUT_NUMBERS = ["stock", "stock fused", "original", "selfaug", "sample 0.25", "economy", "reference given"]
GPU = ["stock", "fused TRL", "selfaug", "economy", "sample 0.25 by shift", "original", "fused Liger"]  # by importance
VARIANTS = [*dict.fromkeys([*MAIN, *GPU]), "plain"]
UNFIT = {  # a cache of one batch, and the equation for tests; and heads of other libraries, which need numbers
    "gpu": {"cached", "reference given", "plain"},
    **{verb: {"fused TRL", "fused Liger"} for verb in ("meta", "shapes")},
}
WHOLE = ["0.5B", "7B", "72B"]
TINY = ["tiny", "tiny untied"]
SHAPES = [*WHOLE, *TINY]
CHUNKS = [24, 64, 110, 256]


def _write(results: Any, options: argparse.Namespace, **facts: Any) -> None:
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**(facts or _facts(options)), "results": results}, indent=1)
        _file(options).write_text(text + "\n", encoding="utf-8")


def _file(options: argparse.Namespace) -> Path:
    folder: Path = options.results
    return folder / f"{options.verb}{'-checkpointing' if options.checkpointing else ''}.json"


def _facts(options: argparse.Namespace) -> dict[str, Any]:
    """What the results depend on: not on the processor if the device is meta, where nothing is computed."""
    import torch

    from Code.benchmarks.device import processor

    facts: dict[str, Any] = {"device": "meta"}
    if options.verb not in ("meta", "shapes"):
        facts = {"machine": processor(), "device": "cpu", "threads": torch.get_num_threads()}
    facts["torch"] = torch.__version__
    if options.verb != "shapes":
        facts["shape"] = options.shape
    if options.verb not in ("shapes", "chunks"):
        facts["layers"] = options.layers
    facts |= {"dtype": "float32", "checkpointing": options.checkpointing}
    if options.verb in ("time", "shares", "chunks"):
        facts["rounds"] = options.rounds
    return facts


def _time(options: argparse.Namespace) -> None:
    from Code.benchmarks import measure

    results = {}
    for T in options.lengths:
        arguments = (options.shape, options.layers, options.checkpointing)
        measured = measure.seconds(T, options.variants, options.rounds, *arguments)
        for name, row in measured.items():
            print(f"T={T} {name:16} {row['seconds']:7.2f} s  {row['ratio']:.3f} of stock", flush=True)
        results[T] = measured
        _write(results, options)
    counted = [
        name for name in options.variants if name not in ("off", "cached")
    ]  # they have the FLOPs of stock and of reference given
    for T, measured in results.items():  # last: counting replaces the attention
        flops = measure.flops(T, counted, options.shape, options.layers, options.checkpointing)
        for name in counted:
            measured[name]["floor"] = flops[name] / flops["stock"]
            print(f"T={T} {name:16} {measured[name]['floor']:.3f} of stock in FLOPs", flush=True)
    _write(results, options)


def _shares(options: argparse.Namespace) -> None:
    from Code.benchmarks import measure

    results = {}
    for T in options.lengths:
        results[T] = measure.shares(T, options.rounds, options.shape, options.layers, options.checkpointing)
        print(f"T={T}", {part: f"{share:.1%}" for part, share in results[T].items()}, flush=True)
        _write(results, options)


def _chunks(options: argparse.Namespace) -> None:
    from Code.benchmarks import measure

    results = {}
    for T in options.lengths:
        results[T] = measure.chunk_speeds(T, CHUNKS, options.rounds, options.shape)
        for size, row in results[T].items():
            best, median = row["best"] / 1e9, row["median"] / 1e9
            print(f"T={T} chunks of {size:3}: best {best:5.1f} GFLOP/s, median {median:5.1f}", flush=True)
        _write(results, options)


def _meta(options: argparse.Namespace) -> None:
    results: dict[int, Any] = {}
    for T in options.lengths:
        results[T] = _without_numbers(T, options.variants, options.shape, options.layers, options.checkpointing)
        _write(results, options)


def _shapes(options: argparse.Namespace) -> None:
    """Adds to the results in the file if their torch is the same: a whole model at 32K tokens takes minutes."""
    results: dict[str, Any] = {}
    if options.results is not None and _file(options).exists():
        facts = json.loads(_file(options).read_text(encoding="utf-8"))
        results = facts.pop("results")
        if facts != _facts(options):
            sys.exit(f"{_file(options)} is of {facts}, this would be of {_facts(options)}: name another folder")
    for shape in options.shapes:
        for T in options.lengths:
            measured = _without_numbers(T, options.variants, shape, None, options.checkpointing)
            results.setdefault(shape, {})[str(T)] = measured
            _write({one: results[one] for one in SHAPES if one in results}, options)


def _without_numbers(
    T: int, variants: list[str], shape: str, layers: int | None, checkpointing: bool
) -> dict[str, dict[str, float]]:
    """Peak of the tensors in bytes and FLOPs of each variant's step, and both of stock's, on the meta device."""
    import torch

    from Code.benchmarks import measure

    measured: dict[str, dict[str, float]] = {}
    for name in variants:
        peak = measure.meta_peak(name, T, shape, layers, checkpointing, torch.float32)
        flops = measure.flops(T, [name], shape, layers, checkpointing)[name]
        measured[name] = {"tensors": peak, "flops": flops}
        measured[name]["ratio"] = peak / measured["stock"]["tensors"]
        measured[name]["flops_ratio"] = flops / measured["stock"]["flops"]
        row = f"{peak / 1e6:8.0f} MB, {measured[name]['ratio']:.3f} of stock, FLOPs {measured[name]['flops_ratio']:.3f}"
        print(f"{shape} T={T} {name:16} {row}", flush=True)
    return measured


def _memory(options: argparse.Namespace) -> None:
    results: dict[int, Any] = {}
    for T in options.lengths:
        for name in options.variants:
            command = [sys.executable, __file__, "one-peak", "--lengths", str(T), "--variants", name]
            command += ["--shape", options.shape, "--layers", str(options.layers)]
            command += ["--checkpointing"] if options.checkpointing else []
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            if done.returncode:
                print(f"T={T} {name}: failed\n{done.stderr[-600:]}", file=sys.stderr)
                if name == "stock":  # there is nothing to compare the others with
                    break
                continue
            row = results.setdefault(T, {})[name] = json.loads(done.stdout.splitlines()[-1])
            row["ratio"] = row["tensors"] / results[T]["stock"]["tensors"]
            print(f"T={T} {name:16} {row['tensors'] / 1e6:8.0f} MB  {row['ratio']:.3f} of stock", flush=True)
        _write(results, options)


def _one_peak(options: argparse.Namespace) -> None:
    from Code.benchmarks import measure

    arguments = (options.lengths[0], options.shape, options.layers, options.checkpointing)
    print(json.dumps(measure.real_peak(options.variants[0], *arguments)))


def _gpu(options: argparse.Namespace) -> None:
    import torch
    from transformers.utils import logging

    from Code.benchmarks import gpu, page
    from Code.benchmarks.budget import Budget
    from Code.benchmarks.device import Device
    from selfaug.toolkit.errors import Refusal

    logging.set_verbosity_error()  # the adapters have random weights on purpose, and each model would say so
    try:
        device = Device(options.device)
    except Refusal as refusal:
        sys.exit(str(refusal))
    budget = Budget(60 * options.minutes, start=START)
    plan = gpu.Plan(
        options.shapes,
        options.layers,
        options.lengths,
        options.variants,
        options.rounds,
        torch.bfloat16 if device.is_gpu else torch.float32,
        say=lambda line: print(line, flush=True),
        save=lambda results: _write(results, options, **facts),
    )
    facts = gpu.facts(plan, device, budget)
    plan.say(f"{facts['machine']}: {len(plan.variants)} variants, at most {options.minutes:g} minutes")
    results = gpu.run(plan, device, budget)
    print(f"\n{page.gpu_tables(results)}")
    found = {kind: gpu.problems(results, kind) for kind in ("out_of_memory", "left_out", "failed")}
    for kind, lines in found.items():
        print("".join([f"\n{kind.replace('_', ' ')}:\n", *(f"  {line}\n" for line in lines)]) if lines else "", end="")
    if options.results is not None:
        print(f"\nWritten to {_file(options)}.")
    if found["failed"]:
        sys.exit(1)


def _page(options: argparse.Namespace) -> None:
    from Code.benchmarks import page

    page.write(ROOT / "docs" / "performance", ROOT / "docs" / "performance.md")


VERBS = {
    "time": _time,
    "shares": _shares,
    "chunks": _chunks,
    "memory": _memory,
    "meta": _meta,
    "one-peak": _one_peak,
    "shapes": _shapes,
    "gpu": _gpu,
    "page": _page,
}


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python Code/benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("verb", choices=VERBS)
    parser.add_argument("--lengths", type=_length, nargs="+", help="default: 512 1024; gpu: 2048 8192 32768")
    parser.add_argument(
        "--variants",
        choices=VARIANTS,
        nargs="+",
        help=f"default: {MAIN}; meta and shapes: {WITHOUT_NUMBERS}; gpu: {GPU}; stock is always measured, first",
    )
    parser.add_argument("--rounds", type=_count, help="default: 5; gpu: at most 3")
    parser.add_argument("--shape", choices=SHAPES, default="0.5B")
    parser.add_argument("--shapes", choices=SHAPES, nargs="+", help=f"default: {WHOLE}; gpu: {WHOLE[:2]}")
    parser.add_argument("--layers", type=_count, help="default: 4; gpu: all")
    parser.add_argument("--checkpointing", action="store_true", help="gpu: always")
    parser.add_argument("--device", default="cuda", help="of gpu: cuda, cuda:1, cpu; default: cuda")
    parser.add_argument("--tiny", action="store_true", help="of gpu: tiny shapes, to try the command in seconds")
    parser.add_argument("--minutes", type=_minutes, default=8.0, help="of gpu: nothing new is begun after; default: 8")
    parser.add_argument("--results", type=Path, metavar="FOLDER", help="where to write the results; default: nowhere")
    return parser


def _count(word: str, least: int = 1) -> int:
    if not word.isdecimal() or int(word) < least:
        raise argparse.ArgumentTypeError(f"{word} is no integer from {least} on")
    return int(word)


def _length(word: str) -> int:
    return _count(word, least=2)  # one token of prompt and one of answer


def _minutes(word: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is no number above 0")
    return number


def read(argv: list[str] | None) -> argparse.Namespace:
    """The options of the command line, with the defaults of their verb."""
    reader = parser()
    options = reader.parse_args(argv)
    on_gpu = options.verb == "gpu"
    if on_gpu and options.device == "cpu" and not (options.tiny or options.shapes):
        reader.error("whole models would take hours on a CPU: add --tiny")
    defaults: dict[str, Any] = {
        "lengths": [512, 1024],
        "variants": WITHOUT_NUMBERS if options.verb in ("meta", "shapes") else MAIN,
        "rounds": 5,
        "shapes": WHOLE,
        "layers": 4,
    }
    if on_gpu:
        defaults = {"lengths": [2048, 8192, 32768], "variants": GPU, "rounds": 3, "shapes": WHOLE[:2], "layers": None}
    if on_gpu and options.tiny:
        defaults |= {"lengths": [64, 128], "shapes": TINY}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    unfit = [name for name in options.variants if name in UNFIT.get(options.verb, ())]
    if unfit:
        reader.error(f"{options.verb} cannot measure {', '.join(unfit)}")
    if options.verb != "one-peak":
        options.variants = list(dict.fromkeys(["stock", *options.variants]))
    return options


def main(argv: list[str] | None = None) -> int:
    options = read(argv)
    for name in [name for name in os.environ if name.startswith("SELFAUG")]:
        del os.environ[name]
    sys.path.append(str(ROOT))  # for Code.benchmarks and Code.toolkit
    if options.verb != "page":
        _patch_in_memory()
        import torch

        torch.set_num_threads(1)
    if options.verb not in ("page", "gpu"):  # gpu leaves them out and goes on
        from Code.benchmarks.slice import missing

        lacking = [f"{name}: {lack}" for name in options.variants if (lack := missing(name, torch.device("cpu")))]
        if lacking:
            sys.exit("\n".join(lacking))
    VERBS[options.verb](options)
    return 0


def _patch_in_memory() -> None:
    """Patched transformers and peft, and Code/ as ``selfaug``, in this process only."""
    from selfaug_patcher import payload, pins, run
    from selfaug_patcher.errors import PatcherError

    try:
        run.serve(pins.load(), payload.load(ROOT / "Code"))
    except PatcherError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
