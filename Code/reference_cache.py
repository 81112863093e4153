"""Fill a reference cache before training.

    python -m selfaug.reference_cache build --model M --data FILE --cache DIR [--autocast bfloat16]

:mod:`.toolkit.training_rows` reads the rows. The cache keeps the head, too, since full fine-tuning needs it
(docs/performance.md).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from . import config, family, positions
from .reference import cache, decoder
from .reference.cache import CacheError
from .reference.samples import autocast_dtype, samples
from .toolkit import training_rows
from .toolkit.errors import Refusal, message
from .toolkit.models import load_model, load_tokenizer


@torch.no_grad()
def build(
    model: Any, rows: Iterable[dict[str, list[int]]], settings: config.Settings, autocast: torch.dtype | None = None
) -> tuple[int, int]:
    """Fill the cache with a sample per row. Returns (number of samples, bytes on disk).

    Args:
        model: a model without adapters.
        rows: {"input_ids", "labels"}.
        autocast: the dtype of the autocast that the training runs under; None if it runs under none.

    Raises:
        CacheError: the folder belongs to another model, the size limit is reached, or no row has an aligned token. The
            samples that are already written stay, and a training can use them. Or this torch cannot compute under
            ``autocast`` on the model's device.
    """
    model.eval()
    if decoder.reads_whole_length(family.decoder_of(model)):
        raise CacheError(
            f"the states of {cache.title(model)} cannot be kept. {cache.NOT_CACHEABLE} Nothing was written."
        )
    under = _autocast(model.device, autocast)
    folder = cache.own_folder(model, settings)
    device, H, count, size = model.device, family.text_config(model).hidden_size, 0, 0
    for row in rows:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        chosen = positions.select(
            labels, None, None, settings.positions, settings.reduction, False, anchors=settings.anchors
        )
        keyed = samples({"input_ids": ids}, chosen, folder.fingerprint, fills_cache=False, autocast=autocast)
        if not keyed:
            continue
        key, index = keyed[0]
        if folder.entries.get(key, len(index), H) is None:
            with under:
                states = family.decoder_of(model)(input_ids=ids[:, : chosen.length].to(device), use_cache=False)[0][0]
            if not folder.entries.put(key, states[index.to(device)], autocast):
                limit = f"{settings.reference_cache_gb:g} GB"
                raise CacheError(f"the cache is full ({limit}) or its disk is; set SELFAUG_CACHE_GB. {count} are in.")
        count += 1
        size += len(index) * H * 2
    if not count:
        raise CacheError(f"no row has a token at the {settings.positions} positions, so there is nothing to keep.")
    head = family.head_of(model)
    if type(head) is torch.nn.Linear and head.bias is None:  # full fine-tuning needs such a head
        draft = folder.path / f"head.pt.{os.getpid()}.new"
        torch.save(head.weight.detach().cpu().clone(), draft)
        os.replace(draft, folder.path / "head.pt")
    (folder.path / "built").touch()
    return count, size


def _autocast(device: torch.device, dtype: torch.dtype | None) -> Any:
    """Autocast to ``dtype`` on ``device``, or a context that does nothing for None."""
    under: Any = contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype)
    with under:
        found = autocast_dtype({}, device)
    if found != dtype:  # torch warns of a dtype that it does not know on a device, and computes without autocast
        raise CacheError(
            f"the states were to be computed with autocast {dtype or 'off'} on {device.type}, and autocast is "
            f"{found or 'off'} there. Either this torch does not have it, or build() was called under autocast. Call "
            "build() outside of autocast, with a dtype that this torch has for that device. Nothing was written."
        )
    return under


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m selfaug.reference_cache", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("build", help="fill a cache before training")
    verb.add_argument("--model", required=True, help="name on the hub, or a folder")
    verb.add_argument("--data", required=True, type=Path, help="rows with input_ids and labels, prompt, or messages")
    verb.add_argument("--cache", help="folder; default: SELFAUG_CACHE")
    verb.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
                      help="of the weights, as the training loads them")  # fmt: skip
    verb.add_argument("--autocast", choices=["bfloat16", "float16"],
                      help="that the training runs under, as with bf16=True or fp16=True; default: none")  # fmt: skip
    verb.add_argument("--attention", metavar="NAME",
                      help="the attn_implementation that the training uses: sdpa, eager, flash_attention_2 …; "
                           "default: transformers' own choice")  # fmt: skip
    options = parser.parse_args(argv)
    environ = {**os.environ, **({"SELFAUG_CACHE": options.cache} if options.cache else {})}
    try:
        settings = config.read(None, environ)
        if settings.reference_cache is None:
            parser.error("--cache, or SELFAUG_CACHE")
        texts = sum("input_ids" not in row for _, row in training_rows.read(options.data))  # reads all rows first
        model = _load(options.model, options.dtype, options.attention)
        tokenizer = load_tokenizer(options.model) if texts else None
        vocabulary = model.get_input_embeddings().weight.shape[0]
        rows = training_rows.read(options.data)
        tokenised = (training_rows.tokenised(row, where, tokenizer, vocabulary) for where, row in rows)
        autocast = None if options.autocast is None else getattr(torch, options.autocast)
        count, size = build(model, tokenised, settings, autocast)
        path = cache.own_folder(model, settings).path
        print(f"{count} samples, {size / 1e6:.1f} MB in {path}")
        if options.autocast is not None:
            print(f"The states are for a training under autocast to {options.autocast}.")
        print(f"Set SELFAUG_CACHE={path.parent} to train this model, with LoRA or in full.")
        print(f"Set SELFAUG_CACHE={path} to go on, in full, from a checkpoint of a model that was trained so.")
    except Refusal as refusal:
        print(message(refusal), file=sys.stderr)
        return 1
    except (CacheError, ValueError, OSError) as error:  # settings, rows and files
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _load(name: str, dtype: str, attention: str | None) -> Any:
    model = load_model(name, dtype, "cuda" if torch.cuda.is_available() else "cpu", attention=attention)
    if not hasattr(type(model), "selfaug_aligned"):
        raise CacheError(f"{name} is a {type(model).__name__}; which is not patched. Nothing was written.")
    return model


if __name__ == "__main__":
    sys.exit(main())
