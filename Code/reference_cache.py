"""Fill a reference cache before training.

    python -m selfaug.reference_cache build --model M --data FILE --cache DIR

Rows are those of :mod:`.training_rows`; the head is kept, too, as full fine-tuning needs it (docs/performance.md).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from . import config, positions, training_rows
from .reference import cache, decoder
from .reference.cache import CacheError
from .reference.samples import samples


@torch.no_grad()
def build(model: Any, rows: Iterable[dict[str, list[int]]], settings: config.Settings) -> tuple[int, int]:
    """Fill the cache with a sample per row: (samples, bytes on disk). ``model`` is a plain Qwen2ForCausalLM.

    Raises:
        CacheError: the folder is another model's, the size limit is reached, or no row has anything to keep. What was
            written until then stays, as what a training has written.
    """
    model.eval()
    if decoder.reads_whole_length(model.model):
        raise CacheError(
            f"the states of {cache.title(model)} cannot be kept. {cache.NOT_CACHEABLE} Nothing was written."
        )
    folder = cache.own_folder(model, settings)
    device, H, count, size = model.model.embed_tokens.weight.device, model.config.hidden_size, 0, 0
    for row in rows:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        chosen = positions.select(labels, None, None, settings.positions, settings.reduction, False)
        keyed = samples({"input_ids": ids}, chosen, folder.fingerprint, fills_cache=False)
        if not keyed:
            continue
        key, index = keyed[0]
        if folder.entries.get(key, len(index), H) is None:
            states = model.model(input_ids=ids[:, : chosen.length].to(device), use_cache=False)[0][0]
            if not folder.entries.put(key, states[index.to(device)]):
                limit = f"{settings.reference_cache_gb:g} GB"
                raise CacheError(f"the cache is full ({limit}) or its disk is; set SELFAUG_CACHE_GB. {count} are in.")
        count += 1
        size += len(index) * H * 2
    if not count:
        raise CacheError(f"no row has a token at the {settings.positions} positions, so there is nothing to keep.")
    if type(model.lm_head) is torch.nn.Linear and model.lm_head.bias is None:  # another one cannot be trained in full
        draft = folder.path / f"head.pt.{os.getpid()}.new"
        torch.save(model.lm_head.weight.detach().cpu().clone(), draft)
        os.replace(draft, folder.path / "head.pt")
    (folder.path / "built").touch()
    return count, size


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m selfaug.reference_cache", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("build", help="fill a cache before training")
    verb.add_argument("--model", required=True, help="name on the hub, or a folder")
    verb.add_argument("--data", required=True, type=Path, help="JSONL: input_ids and labels, or prompt/messages rows")
    verb.add_argument("--cache", help="folder; default: SELFAUG_CACHE")
    verb.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"],
                      help="of the weights, as the training loads them")  # fmt: skip
    options = parser.parse_args(argv)
    environ = {**os.environ, **({"SELFAUG_CACHE": options.cache} if options.cache else {})}
    try:
        settings = config.read(None, environ)
        if settings.reference_cache is None:
            parser.error("--cache, or SELFAUG_CACHE")
        texts = any("input_ids" not in row for _, row in training_rows.read(options.data))  # all, before a model loads
        model, tokenizer = _load(options.model, options.dtype, texts)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        read = training_rows.read(options.data)
        rows = (training_rows.tokenised(row, where, tokenizer, vocabulary) for where, row in read)
        count, size = build(model, rows, settings)
        path = cache.own_folder(model, settings).path
        print(f"{count} samples, {size / 1e6:.1f} MB in {path}")
        print(f"Set SELFAUG_CACHE={path.parent} to train this model, with LoRA or in full.")
        print(f"Set SELFAUG_CACHE={path} to go on, in full, from a checkpoint of a model that was trained so.")
    except (CacheError, ValueError, OSError) as error:  # settings, rows, files, and what transformers cannot load
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _load(name: str, dtype: str, texts: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        name, torch_dtype=dtype if dtype == "auto" else getattr(torch, dtype)
    )
    if not hasattr(type(model), "selfaug_aligned"):
        raise CacheError(f"{name} is a {type(model).__name__}; expected a Qwen2 model. Nothing was written.")
    if torch.cuda.is_available():
        model.cuda()
    return model, AutoTokenizer.from_pretrained(name) if texts else None


if __name__ == "__main__":
    sys.exit(main())
