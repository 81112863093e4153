"""``python -m selfaug.trial``: does SelfAug do here what it says? Exit code 1 if a check does not hold."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from . import as_stock, tiny
from .checks import Check

QWEN2 = "transformers.models.qwen2.modeling_qwen2:Qwen2ForCausalLM"


def checks(classes: list[str]) -> Iterator[Check]:
    """Every check of these model classes, each as ``module:class``, and of peft's layers."""
    # here, because --hashes runs without SelfAug's hooks, too
    from . import arguments, exact, lora_layers, outputs, training

    for name in classes:
        cls = tiny.model_class(name)
        for check in itertools.chain(
            arguments.checks(tiny.base(cls)), exact.checks(cls), outputs.checks(cls), training.checks(cls)
        ):
            yield dataclasses.replace(check, name=_named(check.name, cls, classes))
    yield from lora_layers.checks()


def hashes(classes: list[str]) -> Iterator[dict[str, str]]:
    """Hashes of what has to be bit-identical with stock, as {"case", "sha256"}."""
    for name in classes:
        cls = tiny.model_class(name)
        for case, sha256 in as_stock.hashes(cls):
            yield {"case": _named(f"as stock: {case}", cls, classes), "sha256": sha256}


def _named(name: str, cls: Any, classes: list[str]) -> str:
    """The name of a check, by which it is told from the same check of another class where there are several."""
    return name if len(classes) == 1 else f"{name}, {cls.__name__}"


def answers(classes: list[str], with_checks: bool, with_hashes: bool) -> Iterator[Check | dict[str, str]]:
    """Checks, then hashes, without what transformers and SelfAug say on the way: the checks provoke warnings."""
    from transformers.utils import logging

    logging.disable_default_handler()
    warnings.simplefilter("ignore")
    todo: Iterator[Check | dict[str, str]] = itertools.chain(
        checks(classes) if with_checks else (), hashes(classes) if with_hashes else ()
    )
    while True:
        with contextlib.redirect_stderr(io.StringIO()):
            answer = next(todo, None)
        if answer is None:
            return
        yield answer


# How the names of the variables begin by which a launcher (torchrun, accelerate, DeepSpeed, MPI) tells its processes of
# each other. The trial is none of these: its Trainer would wait for the others, or meet them in the job's store. And
# the user's settings, which may be wrong, are none of the trial's.
_OF_OTHERS = ("SELFAUG", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "ACCELERATE_",
                  "FSDP_", "PARALLELISM_CONFIG_", "PMI_", "OMPI_", "MV2_", "MPI_")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m selfaug.trial", description=(__doc__ or "").split(": ")[1])
    parser.add_argument("classes", nargs="*", metavar="MODULE:CLASS", default=[QWEN2], help=f"default: {QWEN2}")
    parser.add_argument("--json", action="store_true", help="hashes and checks, one JSON object a line")
    parser.add_argument("--hashes", action="store_true", help="only hashes of what must equal stock")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in [name for name in os.environ if name.startswith(_OF_OTHERS)]:
        del os.environ[name]
    ok = True
    for answer in answers(arguments.classes, not arguments.hashes, arguments.json or arguments.hashes):
        if isinstance(answer, Check):
            ok = ok and answer.ok
            print(json.dumps(answer.as_dict()) if arguments.json else answer, flush=True)
        else:
            print(json.dumps(answer), flush=True)
    if arguments.json or arguments.hashes:
        print(json.dumps({"done": True}))  # nothing has stopped before its end
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
