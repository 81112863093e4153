"""Every pinned release, from its real file: what the table says about it is so, and the seam changes what it should."""

from __future__ import annotations

import ast
import hashlib

import pytest
from releases import TABLE, TARGETS, distinct, name

from selfaug_patcher import families
from selfaug_patcher.seam import class_names

every_release = pytest.mark.parametrize("pin", TABLE.pins, ids=name)
every_file = pytest.mark.parametrize("pin", distinct(TABLE.pins), ids=name)


@every_release
def test_the_stock_file_is_the_pinned_one(pin, stock):
    assert hashlib.sha256(stock(pin)).hexdigest() == pin.stock_sha256


@every_file
def test_the_seam_gives_the_pinned_result_and_taken_out_the_stock_bytes(pin, stock):
    target = TARGETS[pin.target]
    patched = TABLE.patched(target, stock(pin))
    assert hashlib.sha256(patched).hexdigest() == pin.patched_sha256
    assert TABLE.stock(target, patched) == stock(pin)


@every_file
def test_only_lines_are_added_but_for_the_class_statement(pin, stock):
    patched = TABLE.patched(TARGETS[pin.target], stock(pin))
    before, after = stock(pin).split(b"\n"), patched.split(b"\n")
    lines, names = TABLE.seams[TARGETS[pin.target].package], class_names(TARGETS[pin.target], stock(pin))
    for line in (*lines.imports, *[line for _ in names for line in (*lines.before, *lines.after)]):
        after.remove(line)
    changed = [(old, new) for old, new in zip(before, after) if old != new]
    assert len(before) == len(after)
    openings = [f"class {name}(".encode() for name in names]
    assert sorted(old.partition(b"(")[0] + b"(" for old, _ in changed) == sorted(openings)
    assert changed == [(old, old.replace(b"(", b"(" + lines.base.encode() + b", ", 1)) for old, _ in changed]


@every_file
def test_the_result_compiles(pin, stock):
    compile(TABLE.patched(TARGETS[pin.target], stock(pin)), "patched.py", "exec", dont_inherit=True)


@pytest.mark.parametrize("pin", distinct([pin for pin in TABLE.pins if pin.target != families.LAYER.name]), ids=name)
def test_the_model_gets_selfaligned_as_its_first_base_and_one_import(pin, stock):
    patched, original = both(pin, stock(pin))
    (added,) = [node for node in patched if ast.unparse(node) == "from selfaug.hooks import SelfAligned"]
    patched.remove(added)
    for wanted in class_names(TARGETS[pin.target], stock(pin)):
        changed = class_named(wanted, patched)
        assert ast.unparse(changed.bases[0]) == "SelfAligned"
        assert ast.unparse(changed.bases[1]).endswith("PreTrainedModel")
        assert "forward" in names(changed.body)
        del changed.bases[0]
    assert list(map(ast.dump, patched)) == list(map(ast.dump, original))


@pytest.mark.parametrize("pin", distinct(TABLE.of(families.LAYER.name)), ids=name)
def test_only_the_bases_of_lora_layer_change_and_what_they_are_called_by_stands_before_it(pin, stock):
    patched, original = both(pin, stock(pin))
    changed, unchanged = class_named("LoraLayer", patched), class_named("LoraLayer", original)
    assert [ast.unparse(base) for base in unchanged.bases] == ["BaseTunerLayer"]
    assert [ast.unparse(base) for base in changed.bases] == ["ReferenceSwitch", "BaseTunerLayer"]
    assert "disable_adapters" not in names(unchanged.body)
    assert "self._disable_adapters" in ast.unparse(unchanged)
    place = patched.index(changed)
    assert ast.unparse(patched.pop(place - 1)) == (
        "try:\n    from selfaug.hooks import ReferenceSwitch\n"
        "except ImportError:\n\n    class ReferenceSwitch:\n        ..."
    )
    del changed.bases[0]
    assert list(map(ast.dump, patched)) == list(map(ast.dump, original))


def both(pin, source: bytes) -> tuple[list[ast.stmt], list[ast.stmt]]:
    return ast.parse(TABLE.patched(TARGETS[pin.target], source)).body, ast.parse(source).body


def class_named(wanted: str, nodes: list[ast.stmt]) -> ast.ClassDef:
    (node,) = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name == wanted]
    return node


def names(nodes: list[ast.stmt]) -> list[str]:
    return [getattr(node, "name", type(node).__name__) for node in nodes]
