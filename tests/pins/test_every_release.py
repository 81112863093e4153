"""Every pinned release, from its real file: what the table and the patch headers say about it is so."""

from __future__ import annotations

import ast
import copy
import hashlib
import shutil
import subprocess

import pytest
from releases import TABLE, TARGETS, distinct, name

from selfaug_patcher import pins, udiff

every_release = pytest.mark.parametrize("pin", TABLE.pins, ids=name)
every_file = pytest.mark.parametrize("pin", distinct(TABLE.pins), ids=name)


@every_release
def test_the_stock_file_is_the_pinned_one(pin, stock):
    assert hashlib.sha256(stock(pin)).hexdigest() == pin.stock_sha256


@every_file
def test_each_pre_image_stands_in_the_stock_file_exactly_once(pin, stock):
    for hunk in TABLE.patch(pin).hunks:
        assert (b"\n" + stock(pin)).count(b"\n" + b"".join(hunk.before)) == 1


@every_file
def test_the_result_is_the_pinned_one(pin, stock):
    assert hashlib.sha256(udiff.apply(TABLE.patch(pin), stock(pin))).hexdigest() == pin.patched_sha256


@every_file
def test_reverse_gives_the_stock_bytes(pin, stock):
    patch = TABLE.patch(pin)
    assert udiff.reverse(patch, udiff.apply(patch, stock(pin))) == stock(pin)


@every_file
def test_the_result_compiles(pin, stock):
    compile(udiff.apply(TABLE.patch(pin), stock(pin)), "patched.py", "exec", dont_inherit=True)


@pytest.mark.parametrize("pin", distinct(TABLE.of("transformers:qwen2")), ids=name)
def test_only_qwen2_for_causal_lm_changes_and_selfaligned_is_its_first_base(pin, stock):
    patched, original = both(pin, stock(pin))
    (added,) = [node for node in patched if ast.unparse(node) == "from selfaug.hooks import SelfAligned"]
    patched.remove(added)
    changed = class_named("Qwen2ForCausalLM", patched)
    assert ast.unparse(changed.bases[0]) == "SelfAligned"
    assert ast.unparse(changed.bases[1]) == "Qwen2PreTrainedModel"
    assert "forward" in names(changed.body)

    restored = copy.copy(changed)
    restored.bases = changed.bases[1:]
    assert ast.dump(restored) == ast.dump(class_named("Qwen2ForCausalLM", original))  # its decorators, too
    assert names(patched) == names(original)


@pytest.mark.parametrize("pin", distinct(TABLE.of("peft:lora")), ids=name)
def test_only_the_bases_of_lora_layer_change_and_what_they_are_called_by_stands_before_it(pin, stock):
    patched, original = both(pin, stock(pin))
    changed, unchanged = class_named("LoraLayer", patched), class_named("LoraLayer", original)
    assert [ast.unparse(base) for base in unchanged.bases] == ["BaseTunerLayer"]
    assert [ast.unparse(base) for base in changed.bases] == ["ReferenceSwitch", "BaseTunerLayer"]
    assert "disable_adapters" not in names(unchanged.body)
    assert "self._disable_adapters" in ast.unparse(unchanged)

    restored = copy.copy(changed)
    restored.bases = changed.bases[1:]
    assert ast.dump(restored) == ast.dump(unchanged)
    place = patched.index(changed)
    assert ast.unparse(patched[place - 1]) == (
        "try:\n    from selfaug.hooks import ReferenceSwitch\n"
        "except ImportError:\n\n    class ReferenceSwitch:\n        ..."
    )
    rest = [*patched[: place - 1], restored, *patched[place + 1 :]]
    assert list(map(ast.dump, rest)) == list(map(ast.dump, original))


def both(pin: pins.Pin, source: bytes) -> tuple[list[ast.stmt], list[ast.stmt]]:
    return ast.parse(udiff.apply(TABLE.patch(pin), source)).body, ast.parse(source).body


def class_named(wanted: str, nodes: list[ast.stmt]) -> ast.ClassDef:
    (node,) = [node for node in nodes if isinstance(node, ast.ClassDef) and node.name == wanted]
    return node


def names(nodes: list[ast.stmt]) -> list[str]:
    return [getattr(node, "name", type(node).__name__) for node in nodes]


@pytest.mark.skipif(not shutil.which("patch"), reason="GNU patch is not installed")
@every_file
def test_gnu_patch_accepts_the_file_and_undoes_it(pin, stock, tmp_path):
    by_hand(pin, stock(pin), tmp_path, ["patch", "-p1", "--fuzz=0", "-i"], ["patch", "-p1", "-R", "--fuzz=0", "-i"])


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
@every_file
def test_git_apply_accepts_the_file_and_undoes_it(pin, stock, tmp_path):
    by_hand(pin, stock(pin), tmp_path, ["git", "apply"], ["git", "apply", "-R"])


def by_hand(pin: pins.Pin, source: bytes, folder, forward: list[str], backward: list[str]) -> None:
    file = folder / TARGETS[pin.target].path
    file.parent.mkdir(parents=True)
    file.write_bytes(source)
    patch = str(TABLE.root.resolve() / pin.patch)
    subprocess.run([*forward, patch], cwd=folder, check=True, capture_output=True)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == pin.patched_sha256
    subprocess.run([*backward, patch], cwd=folder, check=True, capture_output=True)
    assert file.read_bytes() == source
