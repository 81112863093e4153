"""Stock files that a future release might bring. SelfAug is refused, or exact against stock's own loss: never wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODEL, LAYER = "transformers.models.qwen2.modeling_qwen2", "peft.tuners.lora.layer"
HEAD, DECODER = "Qwen2ForCausalLM", "Qwen2Model"
LOSS = "loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)"
LOGITS = "logits = self.lm_head(hidden_states)"
CACHE = "        cache: Cache | None = None,\n"
ASKS = "        if self.disable_adapters:\n"
RENAMED = 'cache = kwargs.pop("cache", keys_and_values)'
KEPT = "logits_to_keep: int | torch.Tensor = 0,"


def after(line, more):
    return [HEAD, line, f"{line}\n{' ' * (12 if line == LOSS else 8)}{more}"]


def with_labels(labels):
    return [HEAD, "labels=labels,", f"labels={labels},"]


EXACT = "exact"
# what is changed, and the checks that must not hold (by the beginning of a name), or EXACT: all hold
BROKEN = {
    "nothing": ({MODEL: []}, EXACT),
    "the cache has another name": (
        {
            MODEL: [
                [HEAD, CACHE, CACHE.replace("cache:", "keys_and_values:")],
                [HEAD, "        outputs: Base", f"        {RENAMED}\n        outputs: Base"],
                [DECODER, CACHE, CACHE.replace("cache:", "keys_and_values:")],
                [DECODER, "        if (input_ids", f"        {RENAMED}\n        if (input_ids"],
            ]
        },
        ("arguments of forward", "arguments of the decoder's forward"),
    ),
    "a new argument": ({MODEL: [[HEAD, KEPT, f"{KEPT}\n        tau: float = 1.0,"]]}, ("arguments of forward",)),
    "a z-loss": ({MODEL: [after(LOSS, "loss = loss + 1e-3 * logits.logsumexp(-1).pow(2).mean()")]}, EXACT),
    "a router loss": ({MODEL: [after(LOSS, "loss = loss + 1e-2 * hidden_states.pow(2).mean()")]}, EXACT),
    "a scaled head": ({MODEL: [after(LOGITS, "logits = logits / 8")]}, EXACT),
    "a soft cap": ({MODEL: [after(LOGITS, "logits = 30 * torch.tanh(logits / 30)")]}, EXACT),
    "logits cast to bfloat16": ({MODEL: [after(LOGITS, "logits = logits.bfloat16()")]}, ("exact: plain",)),
    "logits cast to float32": ({MODEL: [after(LOGITS, "logits = logits.float()")]}, EXACT),
    "dropout before the head": (
        {MODEL: [[HEAD, LOGITS, "logits = self.lm_head(nn.functional.dropout(hidden_states, 0.1, self.training))"]]},
        ("exact: plain",),
    ),
    "labels shifted twice": (
        {MODEL: [with_labels("nn.functional.pad(labels[:, 1:], (0, 1), value=-100)")]},
        EXACT,
    ),
    "labels shifted in forward": (
        {
            MODEL: [
                with_labels("labels, shift_labels=nn.functional.pad(labels[:, 1:], (0, 1), value=-100)"),
            ]
        },
        EXACT,
    ),
    "labels of one token ignored": ({MODEL: [with_labels("labels.masked_fill(labels > 48, -100)")]}, EXACT),
    "num_items_in_batch dropped": (
        {MODEL: [[HEAD, LOSS, f"kwargs.pop('num_items_in_batch', None)\n            {LOSS}"]]},
        EXACT,  # the term is a mean then, as that loss is
    ),
    "a decoder that ignores the mask": (
        {MODEL: [[DECODER, '"attention_mask": attention_mask,', '"attention_mask": None,']]},
        EXACT,
    ),
    "hidden states left out of the output": (
        {MODEL: [[HEAD, "hidden_states=outputs.hidden_states,", "hidden_states=None,"]]},
        ("outputs by attribute",),
    ),
    "a LoRA layer that does not ask the switch": (
        {LAYER: [["Linear", ASKS, ASKS.replace("self.", "self._")]]},
        ("LoRA off: Linear", "LoRA off: every layer's source", "exact: plain"),
    ),
    "an embedding that does not ask the switch": (
        {LAYER: [["Embedding", ASKS, ASKS.replace("self.", "self._")]]},
        ("LoRA off: Embedding",),
    ),
}


@pytest.fixture(scope="module")
def trials():
    """The answers of all trials, by case."""
    edits = json.dumps({case: edits for case, (edits, _) in BROKEN.items()})
    command = [sys.executable, str(ROOT / "tests" / "trial" / "trials.py")]
    run = subprocess.run(command, input=edits, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.xdist_group("trials")
@pytest.mark.parametrize("case", BROKEN)
def test_a_changed_stock_file_is_refused_or_exact(case, trials):
    expected = BROKEN[case][1]
    checks = [line for line in trials[case] if "ok" in line]
    failing = [check["name"] for check in checks if not check["ok"]]
    assert len(checks) > 30, checks
    if expected is EXACT:
        assert not failing, [check for check in checks if not check["ok"]]
    for name in () if expected is EXACT else expected:
        assert [check for check in failing if check.startswith(name)], f"{name}: {failing}"
