"""What upstream changed in the code that a seam leans on, for a person to read."""

from __future__ import annotations

import ast
import difflib
import re

from ..families import LAYER, Target

# The functions around the seam of peft; of a model, see `names`.
_OF_LAYER = ("LoraLayer", "LoraLayer.__init__", "Linear.forward", "Embedding.forward")


def names(target: Target) -> tuple[str, ...]:
    """The classes and functions to read, by dotted name: the patched class, and what that calls."""
    if target == LAYER:
        return _OF_LAYER
    decoder = re.sub("For[A-Z].*", "Model", target.class_name)
    parts = [part for name in target.class_names for part in (name, f"{name}.__init__", f"{name}.forward")]
    return (*parts, f"{decoder}.forward")


def changes(target: Target, before: bytes, after: bytes, labels: tuple[str, str]) -> str:
    """The unified diff of these functions; empty if they are the same in both files."""
    texts: list[str] = []
    for name in names(target):
        old, new = (source(content, name).splitlines() for content in (before, after))
        texts += difflib.unified_diff(old, new, f"{labels[0]} {name}", f"{labels[1]} {name}", lineterm="", n=4)
    return "".join(line + "\n" for line in texts)


def source(content: bytes, name: str) -> str:
    """A function with its decorators; of a class, only the lines down to its first function. Empty if there is none."""
    lines = content.decode("utf-8", "replace").split("\n")
    nodes: list[ast.stmt] = ast.parse(content).body
    node: ast.ClassDef | ast.FunctionDef | None = None
    for part in name.split("."):
        definitions = [each for each in nodes if isinstance(each, (ast.ClassDef, ast.FunctionDef))]
        node = next((each for each in definitions if each.name == part), None)
        if node is None:
            return ""
        nodes = node.body
    assert node is not None
    end = node.end_lineno or node.lineno
    if isinstance(node, ast.ClassDef):
        functions = [_start(each) for each in node.body if isinstance(each, ast.FunctionDef)]
        end = min([end, *(start - 1 for start in functions)])
    return "\n".join(lines[_start(node) - 1 : end]).rstrip() + "\n"


def _start(node: ast.ClassDef | ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
