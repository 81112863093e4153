"""Greedy answers in batches that shrink: a row that has ended costs nothing more."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
import transformers
from packaging.version import Version

CACHE = "cache" if Version(transformers.__version__) >= Version("5.24") else "past_key_values"


@torch.inference_mode()
def answers(
    model: Any, prompts: Sequence[list[int]], limit: int, ends: Collection[int], batch_size: int
) -> Iterator[tuple[int, list[int]]]:
    """Yield (index of a prompt, token ids of the answer to it), in the order in which answers end. An answer ends with
    one of the tokens ``ends``, which is its last id, or after ``limit`` tokens.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids. Short prompts are answered first, which saves padding.
        batch_size: answers that are written at a time.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        longest = max(len(prompts[index]) for index in rows)
        padding = [longest - len(prompts[index]) for index in rows]
        ids = torch.tensor([[0] * short + prompts[index] for index, short in zip(rows, padding)])  # (B, T)
        mask = torch.tensor([[0] * short + [1] * (longest - short) for short in padding])  # (B, T)
        ids, mask = ids.to(model.device), mask.to(model.device)
        written: dict[int, list[int]] = {index: [] for index in rows}
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = None
        for _ in range(limit):
            output = model(
                input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1,
                **{CACHE: cache},
            )  # fmt: skip
            cache = getattr(output, CACHE)
            tokens = output.logits[:, -1].argmax(-1)  # (B,)
            for index, token in zip(rows, tokens.tolist()):
                written[index].append(token)
            going = [at for at, index in enumerate(rows) if not _ended(written[index], limit, ends)]
            if len(going) < len(rows):
                yield from ((index, written[index]) for at, index in enumerate(rows) if at not in going)
                if not going:
                    break
                rows, kept = [rows[at] for at in going], torch.tensor(going, device=mask.device)
                cache.batch_select_indices(kept)
                tokens, mask, positions = tokens[kept], mask[kept], positions[kept]
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)


def _ended(ids: Sequence[int], limit: int, ends: Collection[int]) -> bool:
    return ids[-1] in ends or len(ids) == limit
