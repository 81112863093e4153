"""A dry step: what SelfAug would do with a model and its training data, before anything trains.

    python -m selfaug.check --model NAME_OR_FOLDER [--data FILE]

Nothing is trained, written or downloaded but the model's config and tokenizer. Exit code 0 if SelfAug acts, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ..toolkit.errors import Refusal, message, print_anything


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns 0: SelfAug acts, 1: it does not, or an error, 2: wrong usage."""
    print_anything()
    options = parser().parse_args(argv)

    from transformers.utils import logging

    from .. import family
    from ..config import SettingError
    from ..toolkit.training_rows import RowError
    from . import batch, report, shape
    from .answer import answer

    logging.set_verbosity_error()
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, to its own callers
    try:
        model, lora = shape.model(options.model, options.targets, options.checkpointing)
        if options.data is None:
            data, rows = batch.made_up(), "made-up data (--data FILE takes yours)"
        else:
            vocabulary = family.text_config(model).vocab_size
            data = batch.first_rows(options.data, options.rows, options.model, vocabulary, options.max_length)
            rows = str(options.data)
        found = answer(model, lora, data)
    except (Refusal, OSError) as error:
        print(message(error), file=sys.stderr)
        return 1
    except (SettingError, RowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps({"name": options.model, "data": rows, "acts": found.acts, **asdict(found)}, indent=1))
    else:
        print(report.text(found, options.model, rows))
    return 0 if found.acts else 1


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(
        prog="python -m selfaug.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole.add_argument("--model", required=True, help="a folder, or a name on the hub")
    whole.add_argument(
        "--data", type=Path, metavar="FILE", help="training rows: messages, prompt and completion, or input_ids and "
        "labels (default: one made-up row of 2,048 tokens, 85 %% of them prompt)",
    )  # fmt: skip
    whole.add_argument(
        "--rows", type=_whole, default=8, metavar="N", help="the first N make the micro-batch (default: 8, as "
        "per_device_train_batch_size)",
    )  # fmt: skip
    whole.add_argument("--max-length", type=_whole, metavar="N", help="cut rows to N tokens, as your trainer does")
    whole.add_argument(
        "--targets", metavar="NAMES", help="modules that get LoRA: all-linear, or q_proj,v_proj,... (default: peft's)"
    )
    whole.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    whole.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return whole


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
