"""Does SelfAug do here what it says? A functional check on a tiny random Qwen2 with LoRA, in seconds, on the CPU.

    python -m selfaug.selftest            what passes and what does not; exit code 1 if anything does not
    python -m selfaug.selftest --json     the same as one JSON object
    python -m selfaug.selftest --digest   hashes of what must be bit-identical with stock transformers and peft

``--digest`` runs on stock packages too and imports nothing of SelfAug: ``python -m selfaug_patcher verify`` runs it
on both and compares.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

ALPHA = 0.5
TOLERANCE = 3e-4  # relative, float32


def tiny_model(lora: bool, perturbed: bool = True) -> nn.Module:
    """A random two-layer Qwen2 in training mode; ``lora`` on attention and MLP, ``perturbed`` away from its zero
    start.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model: Any = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
    )
    if lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]))
        if perturbed:
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    nn.init.normal_(parameter, std=0.2)
    return model.train()


def batch() -> dict[str, Tensor]:
    """Three rows of 12: prompts of 7, 6 and 5 tokens, right padding in the second, left padding in the third."""
    torch.manual_seed(1)
    ids = torch.randint(3, 97, (3, 12))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    mask[2, :2] = 0
    labels = ids.clone()
    for row, prompt in enumerate((7, 6, 7)):
        labels[row, :prompt] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels.masked_fill(mask == 0, -100)}


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """SELFAUG_* variables for a while; those of the user are put aside."""
    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("SELFAUG")}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of the last backward pass, by parameter name; they are cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def digest() -> dict[str, str]:
    """sha256 of outputs, losses and gradients in the cases where SelfAug must change nothing."""

    def sha256(*tensors: Tensor) -> str:
        return hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()

    data = batch()
    inputs = {name: value for name, value in data.items() if name != "labels"}
    prompt = data["input_ids"][:1, :6]
    cases: dict[str, str] = {}
    tuned, plain = tiny_model(lora=True), tiny_model(lora=False)
    with environment(SELFAUG="0"):
        output = tuned(**data)
        output.loss.backward()
        cases["training step with SELFAUG=0"] = sha256(output.loss, output.logits, *gradients(tuned).values())
    with environment():
        output = plain(**data)
        output.loss.backward()
        cases["full fine-tuning step"] = sha256(output.loss, output.logits, *gradients(plain).values())
        cases["training mode without labels"] = sha256(tuned(**inputs).logits)
        tuned.eval()
        plain.eval()
        with torch.no_grad():
            output = tuned(**data)
            cases["evaluation with labels"] = sha256(output.loss, output.logits)
            cases["evaluation as a tuple"] = sha256(*tuned(**data, return_dict=False)[:2])
            cases["plain Qwen2"] = sha256(plain(**inputs).logits)
            for name, model in (("LoRA", tuned), ("plain", plain)):
                mask = torch.ones_like(prompt)
                tokens = model.generate(input_ids=prompt, attention_mask=mask, max_new_tokens=8, do_sample=False)
                cases[f"generate, {name}"] = sha256(tokens)
            with tuned.disable_adapter():
                cases["peft's disable_adapter"] = sha256(tuned(**inputs).logits)
    return cases


def checks() -> list[dict[str, Any]]:
    """What must hold, each as {"name", "ok", "detail"}."""
    from . import hooks, labels, loss
    from .trainers import metrics

    found: list[dict[str, Any]] = []

    def check(name: str, ok: bool, detail: str) -> None:
        found.append({"name": name, "ok": bool(ok), "detail": detail})

    def kl_of_a_step(model: nn.Module) -> tuple[Tensor, float]:
        metrics.RUNNING.clear()
        value = model(**data).loss
        value.backward()
        return value.detach(), metrics.RUNNING.take().get("selfaug/kl", float("nan"))

    data = batch()
    with environment(SELFAUG_ALPHA=str(ALPHA)):
        fresh = tiny_model(lora=True, perturbed=False)
        kl = kl_of_a_step(fresh)[1]
        check("KL is 0 while LoRA B is 0", abs(kl) < 1e-6, f"KL {kl:.2g}")

        tuned = tiny_model(lora=True)
        value, kl = kl_of_a_step(tuned)
        fast = gradients(tuned)
        check("KL is positive once it is not", kl > 1e-4, f"KL {kl:.4f}")

        plain, plain_kl = _plain_step(tuned, data, loss, labels)
        plain.backward()
        slow = gradients(tuned)
        error = abs(value - plain.detach()) / plain.detach()
        check("loss equals the plain equation", error < 1e-5, f"relative error {error:.1g}, KL {plain_kl:.4f}")
        worst = max(((fast[n] - slow[n]).norm() / slow[n].norm()).item() for n in slow)
        check(
            "gradient equals plain autograd",
            fast.keys() == slow.keys() and worst < TOLERANCE,
            f"{len(fast)} tensors, worst relative error {worst:.1g}",
        )
        layers = [m for m in tuned.modules() if hasattr(type(m), "selfaug_reference")]
        back = bool(layers) and not any(m.selfaug_reference for m in layers)
        check("the switch is back after a step", back, f"{len(layers)} layers")
    stock = hooks.stock_forward(tuned.get_base_model())
    with environment(SELFAUG="0"):
        same = torch.equal(tuned(**data).loss, stock(tuned.get_base_model(), **data).loss)
        check("SELFAUG=0 gives stock's loss", same, "bit-identical" if same else "differs")
    return found


def _plain_step(model: Any, data: dict[str, Tensor], loss: Any, labels: Any) -> tuple[Tensor, float]:
    """Loss by :func:`.loss.plain_loss`, from full logits, with peft's own ``disable_adapter()`` for the reference."""
    inputs = {name: value for name, value in data.items() if name != "labels"}
    logits = model(**inputs).logits
    trainable = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad(), model.disable_adapter():
        reference = model(**inputs).logits
    for parameter in trainable:
        parameter.requires_grad_(True)
    aligned = (data["labels"] == -100) & (data["attention_mask"] == 1)
    targets = labels.shifted(data["labels"])
    both = torch.cat((logits[aligned], logits[~aligned]))
    weight = torch.full((int(aligned.sum()),), ALPHA * (targets != -100).sum().item() / aligned.sum().item())
    terms = loss.plain_loss(both, reference[aligned], torch.cat((targets[aligned], targets[~aligned])), weight)
    return terms.total / (targets != -100).sum(), float(terms.kl_sum / aligned.sum())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m selfaug.selftest", description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--digest", action="store_true", help="hashes of what must equal stock, as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.digest:
        print(json.dumps(digest()))
        return 0
    found = checks()
    ok = all(check["ok"] for check in found)
    if arguments.json:
        print(json.dumps({"ok": ok, "checks": found}))
    else:
        for check in found:
            print(f"{'ok  ' if check['ok'] else 'FAIL'} {check['name']}: {check['detail']}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
