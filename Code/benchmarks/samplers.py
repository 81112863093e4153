"""How good a sample of the aligned positions is: the error that it leaves in LoRA's gradient and in the logged KL.

    python -m selfaug_patcher run Code/benchmarks/samplers.py --model MODEL --adapter ADAPTER --data train.jsonl

The gradient of each position's KL is taken alone, once. Any sampler's error is arithmetic then: with g_i the gradient
of position i, and w_i = 1 / chance if it was drawn, else 0, the sample's gradient is sum_i w_i g_i. From the products
g_i * g_j follow the errors of as many draws as one likes. To keep the gradients small, a fixed random choice of LoRA's
parameters stands for all of them, which leaves the products right on average.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfaug import family, sample
from selfaug.labels import IGNORE_INDEX
from selfaug.reference import switch
from selfaug.toolkit import training_rows

SHARES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)
DRAWS, PARAMETERS = 2000, 100_000


def main(argv: list[str] | None = None) -> None:
    """Print the errors as JSON."""
    reader = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    reader.add_argument("--model", type=Path, required=True, help="the base model's folder")
    reader.add_argument("--adapter", type=Path, required=True, help="a trained LoRA adapter of it")
    reader.add_argument("--data", type=Path, required=True, help="training rows")
    reader.add_argument("--rows", type=int, default=5, help="how many of them (default: 5); minutes each")
    options = reader.parse_args(argv)
    print(json.dumps(table(options.model, options.adapter, options.data, options.rows), indent=1))


def table(model: Path, adapter: Path, data: Path, rows: int) -> dict[str, Any]:
    """The errors, relative to the gradient and the KL over all positions, by share and sampler.

    Args:
        adapter: a LoRA adapter of ``model``, trained: its state decides how uneven the positions are.
        data: training rows; the first ``rows`` make the batch.
    """
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter, is_trainable=True).train()
    positions = _Positions(tuned)
    tokenizer = AutoTokenizer.from_pretrained(model)
    for _, (where, row) in zip(range(rows), training_rows.read(data)):
        positions.add(training_rows.tokenised(row, where, tokenizer, tokenizer.vocab_size))
    return positions.errors()


class _Positions:
    """The aligned positions of some rows: the KL, the gradient and the scores of each."""

    def __init__(self, tuned: Any) -> None:
        self.tuned, self.model = tuned, tuned.get_base_model()
        self.trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        sizes = sum(parameter.numel() for parameter in self.trained)
        generator = torch.Generator().manual_seed(0)
        self.chosen = torch.randperm(sizes, generator=generator)[: min(PARAMETERS, sizes)].sort().values
        weight = family.head_of(self.model).weight.detach().double()
        centred = weight - weight.mean(0)
        self.spread = centred.T @ centred / len(weight)  # (H, H): what a hidden state's change does to the logits
        self.kl: list[float] = []
        self.gradients: list[Tensor] = []
        self.scores: dict[str, list[Tensor]] = {}

    def add(self, row: Mapping[str, list[int]]) -> None:
        """Take in one row of ``input_ids`` and ``labels``."""
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        decoder, head = family.decoder_of(self.model), family.head_of(self.model)
        with torch.no_grad(), switch.switched_off(self.model):
            states = decoder(input_ids=ids, use_cache=False)[0][0]
            reference = head(states).log_softmax(-1)
        hidden = decoder(input_ids=ids, use_cache=False)[0][0]
        log_p = head(hidden).log_softmax(-1)
        aligned = (labels == IGNORE_INDEX).nonzero().squeeze(-1)
        for t in aligned.tolist():
            kl = (reference[t].exp() * (reference[t] - log_p[t])).sum()
            gradients = torch.autograd.grad(kl, self.trained, retain_graph=True)
            self.gradients.append(torch.cat([gradient.flatten() for gradient in gradients])[self.chosen])
            self.kl.append(float(kl.detach()))
        with torch.no_grad():
            moved = (hidden - states)[aligned].double()
            logits = ((moved @ self.spread) * moved).sum(-1).clamp(min=0).sqrt()
            scores = {
                "uniform": torch.ones(len(aligned), dtype=torch.double),
                "shift": sample.shift(hidden[aligned], states[aligned]),
                "shift of the logits": logits,
            }
        for name, score in scores.items():
            self.scores.setdefault(name, []).append(score)

    def errors(self) -> dict[str, Any]:
        """{"positions", "errors": by share, by sampler: {"gradient", "kl"}}."""
        gradients = torch.stack(self.gradients).double()
        products, kl = gradients @ gradients.T, torch.tensor(self.kl, dtype=torch.double)
        scores = {name: torch.cat(parts) for name, parts in self.scores.items()}
        # what the best sampler of independent positions would go by; it costs a backward pass for each of them
        scores["gradient's norm"] = products.diagonal().clamp(min=0).sqrt()
        shares = {}
        for share in SHARES:
            shares[f"1/{round(1 / share)}"] = {
                name: _errors(score, share, products, kl) for name, score in scores.items()
            }
        return {"positions": len(kl), "draws": DRAWS, "errors": shares}


def _errors(score: Tensor, share: float, products: Tensor, kl: Tensor) -> dict[str, float]:
    """Root mean squares over the draws."""
    generator = torch.Generator().manual_seed(0)
    whole, off_gradient, off_kl = float(products.sum()), 0.0, 0.0
    for _ in range(DRAWS):
        if bool((score == score[0]).all()):  # as SELFAUG_SAMPLE_BY=uniform draws
            drawn = sample.positions(len(score), share, generator)
            chance = torch.full((len(drawn),), len(drawn) / len(score), dtype=torch.double)
        else:
            drawn, chance = sample.by_score(score, share, generator)
        off = -torch.ones_like(kl)
        off[drawn] += 1 / chance
        off_gradient += float(off @ products @ off)
        off_kl += float(off @ kl) ** 2
    return {
        "gradient": math.sqrt(off_gradient / DRAWS / whole),
        "kl": math.sqrt(off_kl / DRAWS) / float(kl.sum()),
    }


if __name__ == "__main__":
    main()
