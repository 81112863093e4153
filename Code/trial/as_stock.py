"""Where SelfAug must change nothing: sha256 of outputs, losses and gradients, one per case.

This module imports nothing else of SelfAug than :mod:`.tiny`. It runs once with the patched files and once with the
stock ones, in another process; the hashes must be the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import tiny


def hashes(cls: Any) -> Iterator[tuple[str, str]]:
    """(case, sha256) for a model class."""
    data = tiny.batch()
    inputs = {name: value for name, value in data.items() if name != "labels"}
    plain = tiny.base(cls)
    tuned = tiny.with_lora(plain)
    plain.train()
    with tiny.settings(SELFAUG="0"):
        output = tuned(**data)
        output.loss.backward()
        yield "a training step with SELFAUG=0", _sha256(output.loss, output.logits, *tiny.gradients(tuned).values())
    with tiny.settings():
        output = plain(**data)
        output.loss.backward()
        yield "a step of full fine-tuning", _sha256(output.loss, output.logits, *tiny.gradients(plain).values())
        yield "training mode without labels", _sha256(tuned(**inputs).logits)
        tuned.eval()
        plain.eval()
        with torch.no_grad():
            output = tuned(**data)
            yield "evaluation with labels", _sha256(output.loss, output.logits)
            yield "evaluation as a tuple", _sha256(*tuned(**data, return_dict=False)[:2])
            yield "the model without LoRA", _sha256(plain(**inputs).logits)
            with tuned.disable_adapter():
                yield "peft's disable_adapter()", _sha256(tuned(**inputs).logits)
            for name, options in _GENERATION.items():
                yield f"generate, {name}", _sha256(_generated(tuned, **options), _generated(plain, **options))
    yield "the random state afterwards", _sha256(torch.get_rng_state())


_GENERATION: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True},
    "beams": {"do_sample": False, "num_beams": 2},
}


def _generated(model: Any, **options: Any) -> Tensor:
    prompt = tiny.batch("none")["input_ids"][:1, :6]
    torch.manual_seed(3)
    tokens: Tensor = model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, pad_token_id=0, **options
    )
    return tokens


def _sha256(*tensors: Tensor) -> str:
    bits = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in tensors)  # numpy has no bfloat16
    return hashlib.sha256(b"".join(b.numpy().tobytes() for b in bits)).hexdigest()
