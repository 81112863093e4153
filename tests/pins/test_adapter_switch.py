"""One property on LoraLayer switches every LoRA layer class of every peft release, read from the real sources.

A class is a LoRA layer if LoraLayer is among its ancestors: Linear, Embedding, the convolutions, MultiheadAttention,
ParamWrapper, and those for bitsandbytes, GPTQ, AWQ, AQLM, EETQ, HQQ, torchao, INC, Transformer Engine and Megatron;
AdaLoRA's, too. Most of these need hardware or packages to run, none to be read.
"""

from __future__ import annotations

import ast
import functools
import re
import zipfile

import pytest
from packaging.version import Version
from releases import PROVE_ALL, TABLE, name

from selfaug_patcher.maintain import wheels

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in stock peft

PAST_THE_PROPERTY = re.compile(rb".*\._disable_adapters(?! *= *False).*")
FOLDERS = re.compile(r"peft/tuners/(lora|adalora)/[a-z_0-9]+\.py")

# Classes with a forward of their own, in the release that brought them. What is here must be found, so that a finder
# that finds nothing fails.
BROUGHT = {
    "0.6.0": "Linear Embedding Conv2d Linear8bitLt Linear4bit QuantLinear SVDLinear",
    "0.7.0": "LoraParallelLinear",
    "0.9.0": "AwqLoraLinear AqlmLoraLinear",
    "0.11.0": "EetqLoraLinear HqqLoraLinear",
    "0.14.0": "_ConvNd",
    "0.15.0": "MultiheadAttention",
    "0.17.0": "ParamWrapper",
    "0.19.0": "TeLinear",
}
SINCE_RENAMED = {"Conv2d": "_ConvNd", "QuantLinear": "GPTQLoraLinear"}


def lora_layers(found: list[ast.ClassDef]) -> list[ast.ClassDef]:
    """The classes that descend from LoraLayer, by name, over as many steps as it takes."""
    family = {"LoraLayer"}
    layers: list[ast.ClassDef] = []
    while True:
        more = [node for node in found if node not in layers and family & {last_name(base) for base in node.bases}]
        if not more:
            return layers
        layers += more
        family |= {node.name for node in more}


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def method(node: ast.ClassDef, wanted: str) -> ast.FunctionDef | None:
    return next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == wanted), None)


def disobedience(forward: ast.FunctionDef) -> str:
    """Why this forward could use LoRA weights although `disable_adapters` says no; empty if it cannot."""
    for statement in forward.body:
        if isinstance(statement, ast.If) and asks(statement.test):
            used = [part for part in statement.body if "lora_" in ast.unparse(part)]
            return f"uses LoRA while disabled: {ast.unparse(used[0])}" if used else ""
        text = ast.unparse(statement)
        if "lora_" in text or "scaling" in text:
            return f"comes to {text!r} before it asks"
    return "never asks"


def asks(test: ast.expr) -> bool:
    """``if self.disable_adapters`` alone or as one of several sufficient reasons."""
    reasons = test.values if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.Or) else [test]
    return "self.disable_adapters" in map(ast.unparse, reasons)


def sources(version: str) -> list[bytes]:
    wheel = wheels.find("peft", version)
    if wheel is None:
        assert not PROVE_ALL, f"no wheel of peft {version}"
        pytest.skip("no wheel in the cache")
    with zipfile.ZipFile(wheel) as archive:
        return [archive.read(path) for path in archive.namelist() if FOLDERS.fullmatch(path)]


@functools.lru_cache(maxsize=60)  # most files do not change between two releases
def classes(source: bytes) -> list[ast.ClassDef]:
    """The classes of a module, those under an ``if`` or ``try`` of it as well."""
    found: list[ast.ClassDef] = []
    nodes: list[ast.AST] = list(ast.parse(source).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ClassDef):
            found.append(node)
        elif isinstance(node, (ast.If, ast.Try)):
            nodes += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("pin", TABLE.of("peft:lora"), ids=name)
def test_every_lora_layer_asks_disable_adapters_before_it_uses_lora(pin, all_wheels):
    """And none answers for itself: the property is LoraLayer's, and nobody reads past it."""
    texts = sources(pin.version)
    layers = lora_layers([node for text in texts for node in classes(text)])
    with_forward = {node.name for node in layers if method(node, "forward")}
    for version, expected in BROUGHT.items():
        if Version(version) <= Version(pin.version):
            missing = set(expected.split()) - with_forward
            assert {SINCE_RENAMED.get(wanted) for wanted in missing} <= with_forward

    forwards = [(node.name, method(node, "forward")) for node in layers if method(node, "forward")]
    assert [f"{name} {why}" for name, forward in forwards if (why := disobedience(forward))] == []
    assert [node.name for node in layers if method(node, "disable_adapters")] == []
    assert [use for text in texts for use in PAST_THE_PROPERTY.findall(text)] == []


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param("return self.lora_A(x)", "comes to", id="at once"),
        pytest.param("if self.merged:\n  return x\nreturn y", "never asks", id="never"),
        pytest.param("if self.merged and self.disable_adapters:\n  return x", "never asks", id="not sufficient"),
        pytest.param("if self.disable_adapters:\n  return self.lora_A(x)", "uses LoRA while disabled", id="uses it"),
        pytest.param("self.check(x)\nif self.disable_adapters or not x:\n  return x\nself.lora_A(x)", "", id="good"),
    ],
)
def test_a_forward_that_does_not_ask_is_found(body, words):
    forward = ast.parse("def forward(self, x):\n" + "\n".join("    " + line for line in body.split("\n"))).body[0]
    assert disobedience(forward).startswith(words)
    assert bool(disobedience(forward)) == bool(words)
