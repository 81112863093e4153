"""Dependencies point one way: Code/ never imports the patcher, the patcher never what it patches."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STANDARD = sys.stdlib_module_names if sys.version_info >= (3, 10) else None


def imports(path: Path, package: str = "") -> set[str]:
    """What a file imports: top-level package names, and of its own package ".module" or ".package.module"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            start = "." if node.level == 2 or not package else f".{package}."
            found |= {f"{start}{node.module}"} if node.module else {f"{start}{alias.name}" for alias in node.names}
    return found


def files(folder: str) -> dict[str, Path]:
    """The modules of a folder, and of the packages in it as "package.module"."""
    paths = [*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*/*.py")]
    return {
        ".".join(path.relative_to(ROOT / folder).with_suffix("").parts): path
        for path in sorted(paths)
        if path.parent == ROOT / folder or (path.parent / "__init__.py").exists()
    }


def modules(folder: str) -> dict[str, set[str]]:
    return {name: imports(path, name.rpartition(".")[0]) for name, path in files(folder).items()}


@pytest.mark.skipif(STANDARD is None, reason="sys.stdlib_module_names came with Python 3.10")
def test_the_patcher_imports_the_standard_library_and_packaging_only():
    allowed = {*STANDARD, "packaging", "selfaug_patcher", "__future__"}
    for name, found in modules("selfaug_patcher").items():
        assert {f for f in found if not f.startswith(".")} <= allowed, name


def test_nothing_but_the_verb_pin_needs_the_maintainers_tools():
    users = {name for name, found in modules("selfaug_patcher").items() if any("maintain" in f for f in found)}
    assert {name for name in users if not name.startswith("maintain.")} == {"cli"}


def test_the_runtime_never_imports_the_patcher_and_needs_peft_only_in_its_trial():
    for name, found in modules("Code").items():
        if name != "update_module":
            assert "selfaug_patcher" not in found, name
        if not name.startswith("trial."):
            assert "peft" not in found, name
        assert "Code" not in found, name


def test_tools_import_the_toolkit_and_never_each_other_and_the_training_step_imports_none_of_them():
    allowed = {"toolkit": set(), "self_dialogue": {"toolkit"}, "retention": {"toolkit"}}
    commands = {"reference_cache", "check"}  # these read training data, and may use the toolkit
    for name, imported in modules("Code").items():
        package = name.rpartition(".")[0]
        for other in {other[1:].split(".")[0] for other in imported if other.startswith(".")}:
            if package in allowed:
                assert other in {package, "__version__", *allowed[package]}, name
            else:
                assert other not in allowed or (other == "toolkit" and name.partition(".")[0] in commands), name


def test_the_training_step_imports_no_command():
    commands = {"reference_cache", "check", "trial", "update_module"}
    for name, imported in modules("Code").items():
        if name.partition(".")[0] not in commands:
            assert not {other[1:].split(".")[0] for other in imported if other.startswith(".")} & commands, name


def test_the_step_is_at_the_top_and_the_reference_below_the_trainers():
    for name, found in modules("Code").items():
        others = {other[1:].split(".")[0] for other in found if other.startswith(".")}
        assert "step" not in others or name == "hooks", name
        if name.startswith(("reference.", "trainers.")):
            assert not others & {"hooks", "unpatched"}, name
        if name.startswith("reference."):
            assert "trainers" not in others, name


def test_retention_loads_what_is_optional_only_when_it_is_needed():
    for name, imported in modules("Code").items():
        if name.startswith(("retention.", "toolkit.")):
            assert not imported & {"selfaug", "peft", "matplotlib"} or name == "retention.plots", name


@pytest.mark.parametrize("folder", ["Code", "selfaug_patcher"])
def test_no_module_imports_itself_by_way_of_others(folder):
    graph = {name: {f[1:] for f in found if f.startswith(".")} for name, found in modules(folder).items()}

    def reach(name: str, seen: frozenset[str]) -> None:
        assert name not in seen, f"{folder}: {' -> '.join(seen)} -> {name}"
        for other in graph.get(name, ()):
            reach(other, seen | {name})

    for name in graph:
        reach(name, frozenset())


@pytest.mark.parametrize("folder", ["Code", "selfaug_patcher"])
def test_modules_stay_small_enough_to_read(folder):
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files(folder).items()}
    assert {name: n for name, n in lengths.items() if n > 350} == {}
