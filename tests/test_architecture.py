"""Dependencies point one way: Code/ never imports the patcher, the patcher never what it patches."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STANDARD = sys.stdlib_module_names if sys.version_info >= (3, 10) else None


def imports(path: Path) -> set[str]:
    """What a file imports: top-level package names, and modules of its own package as ".name"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            found |= {f"{dots}{node.module}"} if node.module else {f"{dots}{alias.name}" for alias in node.names}
    return found


def modules(folder: str) -> dict[str, set[str]]:
    return {path.stem: imports(path) for path in sorted((ROOT / folder).glob("*.py"))}


@pytest.mark.skipif(STANDARD is None, reason="sys.stdlib_module_names came with Python 3.10")
def test_the_patcher_imports_the_standard_library_and_packaging_only():
    allowed = {*STANDARD, "packaging", "selfaug_patcher", "__future__"}
    for name, found in modules("selfaug_patcher").items():
        assert {f for f in found if not f.startswith(".")} <= allowed, name


def test_the_runtime_never_imports_the_patcher_and_needs_peft_only_in_its_self_test():
    for name, found in modules("Code").items():
        if name != "update_module":
            assert "selfaug_patcher" not in found, name
        if name not in ("selftest",):
            assert "peft" not in found, name
        assert "Code" not in found, name


def test_retention_is_imported_as_a_part_of_the_runtime_which_does_without_it():
    for name, found in modules("Code/retention").items():
        assert not found & {"Code", "selfaug", "selfaug_patcher"}, name
        assert not found & {"peft", "matplotlib", "matplotlib.figure"} or name == "plots", name  # loaded when needed
    for name, found in modules("Code").items():
        assert ".retention" not in found, name


@pytest.mark.parametrize("folder", ["Code", "Code/retention", "selfaug_patcher"])
def test_no_module_imports_itself_by_way_of_others(folder):
    graph = {
        name: {f[1:].split(".")[0] for f in found if f[0] == "." != f[1]} for name, found in modules(folder).items()
    }

    def reach(name: str, seen: frozenset[str]) -> None:
        assert name not in seen, f"{folder}: {' -> '.join(seen)} -> {name}"
        for other in graph.get(name, ()):
            reach(other, seen | {name})

    for name in graph:
        reach(name, frozenset())


@pytest.mark.parametrize("folder", ["Code", "Code/retention", "selfaug_patcher"])
def test_modules_stay_small_enough_to_read(folder):
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / folder).glob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 350} == {}
