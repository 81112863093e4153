"""A model on the meta device, by its config alone, with LoRA as peft would add it."""

from __future__ import annotations

from typing import Any

from ..toolkit.errors import Refusal, first_line, optional
from ..toolkit.models import loading

ALL_LINEAR = "all-linear"
_NO_DEFAULT = "target_modules"  # is in peft's message if it has no default for a type of model


def model(name: str, targets: str | None, checkpointing: bool) -> tuple[Any, str]:
    """(the causal language model of ``name`` in training mode with LoRA, without numbers; what LoRA is on, in words).

    Args:
        name: a folder, or a name on the hub. Only its config is read.
        targets: names of modules with commas between them, or "all-linear"; None takes peft's default for the type of
            model, and all linear layers if peft has none.
        checkpointing: with gradient checkpointing.

    Raises:
        Refusal: transformers knows no such model, or peft finds no layer of these names.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with loading(name):
        config: Any = AutoConfig.from_pretrained(name)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        dtype = next((d for c in (config, text) if isinstance(d := _dtype(c), torch.dtype)), torch.float32)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device("meta"):
                base: Any = AutoModelForCausalLM.from_config(config)
        finally:
            torch.set_default_dtype(before)
    base = base.to(dtype)
    if checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        base.enable_input_require_grads()
    return _with_lora(base, targets)


def _dtype(config: Any) -> Any:
    """The dtype of the checkpoint. The name of the field differs between releases."""
    return getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)


def _with_lora(base: Any, targets: str | None) -> tuple[Any, str]:
    import torch

    peft = optional("peft", "LoRA")
    names: Any = targets if targets in (None, ALL_LINEAR) else [name for name in targets.split(",") if name]
    said = {None: "peft's default", ALL_LINEAR: "all linear layers but the head"}.get(targets, "as given")
    with torch.device("meta"):
        try:
            tuned = peft.get_peft_model(base, peft.LoraConfig(target_modules=names, task_type="CAUSAL_LM"))
        except ValueError as error:
            if targets is not None or _NO_DEFAULT not in str(error):
                expected = f"names of the model's linear layers, or {ALL_LINEAR}"
                raise Refusal("no-lora", "peft cannot add LoRA", expected, first_line(error), "--targets") from None
            tuned = peft.get_peft_model(base, peft.LoraConfig(target_modules=ALL_LINEAR, task_type="CAUSAL_LM"))
            said = "all linear layers but the head; peft has no default for this type of model"
    taken = tuned.peft_config["default"].target_modules
    return tuned.train().get_base_model(), f"{taken if isinstance(taken, str) else ', '.join(sorted(taken))} ({said})"
