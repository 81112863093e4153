"""peft's LoRA layers: each kind has to answer as if it had no LoRA while the reference pass runs."""

from __future__ import annotations

import ast
import copy
import importlib.util
import pkgutil
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..reference import switch
from .checks import Check, failed

EXPECTED = "the output of the layer before LoRA was added, bit for bit"


def checks() -> Iterator[Check]:
    """Every kind of layer that runs on a CPU, by its output; every other one, by its source."""
    for name, layer, inputs, options in _layers():
        try:
            ok, found = _is_off(layer, inputs, options)
        except (ValueError, NotImplementedError, TypeError) as error:
            if _is_unsupported(error):
                continue
            yield failed(f"LoRA off: {name}", EXPECTED, error)
        else:
            yield Check(f"LoRA off: {name}", ok, EXPECTED, found)
    deaf = list(_that_do_not_ask())
    yield Check(
        "LoRA off: every layer's source",
        not deaf,
        "each forward of a LoRA layer asks disable_adapters",
        f"not asked by {', '.join(deaf)}" if deaf else "asked by all",
    )


def _layers() -> Iterator[tuple[str, nn.Module, Tensor, dict[str, Any]]]:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(5)
    vectors = torch.randn(2, 6, 8)
    yield "Linear", nn.Linear(8, 8), vectors, {}
    yield "Linear with DoRA", nn.Linear(8, 8), vectors, {"use_dora": True}
    yield "Embedding", nn.Embedding(11, 8), torch.arange(6).view(1, 6), {}
    yield "Conv1D of transformers", Conv1D(8, 8), vectors, {"fan_in_fan_out": True}
    yield "Conv1d", nn.Conv1d(8, 8, 3), torch.randn(2, 8, 6), {}
    yield "Conv2d", nn.Conv2d(8, 8, 3), torch.randn(2, 8, 6, 6), {}
    yield "Conv3d", nn.Conv3d(8, 8, 3), torch.randn(2, 8, 4, 4, 4), {}


class _Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.layer(inputs)
        return output


def _is_off(layer: nn.Module, inputs: Tensor, options: dict[str, Any]) -> tuple[bool, str]:
    from peft import LoraConfig, get_peft_model

    before = copy.deepcopy(layer)
    model: Any = get_peft_model(_Holder(layer), LoraConfig(r=4, target_modules=["layer"], **options)).train()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        stock, tuned = before(inputs), model(inputs)
        with switch.switched_off(model):
            off = model(inputs)
        again = model(inputs)
    if torch.equal(stock, tuned):
        return False, "LoRA changes nothing here, so nothing can be told"
    if not torch.equal(stock, off):
        return False, f"an output that differs by up to {float((stock - off).abs().max()):.2g}"
    return torch.equal(tuned, again), "the same" if torch.equal(tuned, again) else "LoRA is not back afterwards"


def _is_unsupported(error: Exception) -> bool:
    """Whether this release of peft has no LoRA for such a layer, or no such option."""
    text = str(error)
    return "not supported" in text or "supported" in text or "unexpected keyword" in text


def _that_do_not_ask() -> Iterator[str]:
    """Classes in peft's LoRA package that derive from ``LoraLayer`` and whose forward does not ask the switch. They are
    read, not imported: some modules need a library for quantised weights.
    """
    import peft.tuners.lora as lora

    for module in pkgutil.iter_modules(lora.__path__, "peft.tuners.lora."):
        loader: Any = getattr(importlib.util.find_spec(module.name), "loader", None)
        source = loader.get_source(module.name)
        for layer in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]:
            if any("LoraLayer" in ast.unparse(base) for base in layer.bases):
                methods = [node for node in layer.body if isinstance(node, ast.FunctionDef) and node.name == "forward"]
                if any("self.disable_adapters" not in ast.unparse(method) for method in methods):
                    yield f"{module.name.rpartition('.')[2]}.{layer.name}"
