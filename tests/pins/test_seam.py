"""A seam is placed by the syntax tree, with every other byte as it was, and refused where its place is not clear."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from releases import TABLE

from selfaug_patcher import families, seam
from selfaug_patcher.errors import PatcherError
from selfaug_patcher.seam import MAX_FILE_BYTES

MODEL, LAYER = families.model("demo", "DemoForCausalLM", "1.0"), families.LAYER
OURS = TABLE.seams["transformers"]
LINES = {name: b"\n".join(getattr(OURS, name)) + b"\n" for name in ("imports", "before", "after")}

STOCK = b"""import torch
from .configuration_demo import DemoConfig
from ...generation import GenerationMixin


@auto_docstring
class DemoForCausalLM(DemoPreTrainedModel, GenerationMixin):
    def forward(self):
        return "stock"
"""
PATCHED = (
    STOCK.replace(b"import DemoConfig\n", b"import DemoConfig\n" + LINES["imports"])
    .replace(b"class Demo", LINES["before"] + b"class Demo")
    .replace(b"CausalLM(Demo", b"CausalLM(SelfAligned, Demo")
    .replace(b"GenerationMixin):\n", b"GenerationMixin):\n" + LINES["after"])
)


def placed(stock: bytes, target=MODEL) -> bytes:
    patched = TABLE.patched(target, stock)
    assert TABLE.stock(target, patched) == stock
    return patched


def refused(stock: bytes, target=MODEL) -> str:
    with pytest.raises(PatcherError) as caught:
        TABLE.patched(target, stock)
    (problem,) = caught.value.problems
    assert problem.id == "no-seam"
    assert problem.what.endswith(target.path)
    return str(problem)


def test_the_import_and_the_base_class_are_put_in_and_nothing_else():
    assert placed(STOCK) == PATCHED


def test_what_the_seam_adds_stands_in_the_folder_word_for_word():
    text = (TABLE.root / "transformers.seam").read_text()
    assert all(f"+{line}\n" in text for lines in LINES.values() for line in lines.decode().splitlines())


@pytest.mark.parametrize("name", ["transformers", "peft"])
def test_every_block_of_added_lines_says_whose_they_are_and_the_first_how_to_undo_them(name):
    blocks = [block for block in (TABLE.seams[name].imports, TABLE.seams[name].before) if block]
    assert all(b"python -m selfaug_patcher revert" in block[0] for block in blocks)
    assert TABLE.seams[name].after == (b"# <<< SelfAug",)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace(b"\n", b"\r\n"), id="CRLF"),
        pytest.param(lambda text: text.replace(b"\n", b"\r"), id="CR"),
        pytest.param(lambda text: text.replace(b"import torch\n", b"import torch\r\n"), id="two kinds of line end"),
        pytest.param(lambda text: text.replace(b"    ", b"\t"), id="tabs"),
        pytest.param(lambda text: b"\xef\xbb\xbf" + text, id="byte order mark"),
        pytest.param(lambda text: text.rstrip(b"\n"), id="no line end at the end"),
        pytest.param(lambda text: text + b"\n\n  \n\t\n", id="white space at the end"),
        pytest.param(lambda text: text.replace(b"\n\n", b"\n\x0c\n"), id="form feed"),
        pytest.param(
            lambda text: text + b'X = "\x0c \x0b \x1c \xe2\x80\xa8 \xc2\x85"\n', id="what splitlines splits at"
        ),
        pytest.param(lambda text: text.replace(b"torch", "torch  # é 漢 ⇒".encode()), id="beyond ASCII"),
        pytest.param(lambda text: text.replace(b"):\n    def", b"):  # why\n\n    # what\n    def"), id="comments"),
        pytest.param(
            lambda text: text.replace(b"(Demo", b"(\n    Demo").replace(b"Mixin):", b"Mixin,\n):"), id="lines"
        ),
        pytest.param(lambda text: text.replace(b"(Demo", b"(  Demo"), id="white space before the base"),
        pytest.param(lambda text: text.replace(b"Mixin)", b"Mixin, metaclass=M)"), id="keyword"),
        pytest.param(lambda text: text.replace(b"DemoConfig\n", b"(\n    DemoConfig,  # x\n)\n"), id="import of lines"),
        pytest.param(lambda text: text.replace(b"@auto", b"@other(1)\n@auto"), id="decorators"),
        pytest.param(
            lambda text: text + b"\n\nAlias = DemoForCausalLM\n__all__ = ['DemoForCausalLM']\n", id="used later"
        ),
        pytest.param(
            lambda text: text.replace(b"def forward", b"def class_(self): ...\n\n    def forward"), id="methods"
        ),
        pytest.param(lambda text: text.replace(b'"stock"', b'"\\d"'), id="an escape that Python warns of"),
    ],
)
def test_every_other_byte_stays(change):
    stock = change(STOCK)
    assert stock != STOCK
    patched = placed(stock)
    added = [line for block in (OURS.imports, OURS.before, OURS.after) for line in block]
    left = [line for line in patched.replace(b"\r", b"\n").split(b"\n") if line not in added or not line]
    left = b"".join(left).replace(b"SelfAligned, ", b"")
    assert left == b"".join(stock.replace(b"\r", b"\n").split(b"\n"))


def test_the_added_lines_end_as_the_lines_beside_them():
    patched = placed(STOCK.replace(b"\n", b"\r\n"))
    assert patched.count(b"\n") == patched.count(b"\r\n")
    assert patched == PATCHED.replace(b"\n", b"\r\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda text: text + text[text.index(b"@auto") :], "found:    lines 7 and 11", id="two classes"),
        pytest.param(
            lambda text: text.replace(b"@auto_docstring\n", b"if True:\n ").replace(b"\n    ", b"\n      "),
            "expected: one class DemoForCausalLM, at the top level\n  found:    line 7",
            id="class inside an if",
        ),
        pytest.param(
            lambda text: text + b"try:\n  class DemoForCausalLM: ...\nfinally: pass\n", "lines 7 and 11", id="try"
        ),
        pytest.param(lambda text: text + b"DemoForCausalLM = wrap(DemoForCausalLM)\n", "lines 7 and 10", id="rebound"),
        pytest.param(lambda text: text + b"from .other import DemoForCausalLM\n", "lines 7 and 10", id="imported, too"),
        pytest.param(lambda text: text + b"def DemoForCausalLM(): ...\n", "lines 7 and 10", id="a function, too"),
        pytest.param(lambda text: text.replace(b"Demo", b"Other"), "found:    none", id="no such class"),
        pytest.param(
            lambda text: text.replace(b"from .conf", b"from conf"), "`from .configuration_demo import`", id="import"
        ),
        pytest.param(
            lambda text: text.replace(b"from .conf", b"from ..conf"), "found:    none", id="import of a parent"
        ),
        pytest.param(
            lambda text: text + b"from .configuration_demo import X\n", "found:    lines 2 and 10", id="two imports"
        ),
        pytest.param(
            lambda text: text.replace(b"from .conf", b"if True:\n    from .conf"),
            "found:    line 3",
            id="import in an if",
        ),
        pytest.param(
            lambda text: text.replace(b"DemoConfig\n", b"DemoConfig; import os\n"),
            "another program",
            id="two on a line",
        ),
        pytest.param(
            lambda text: text.replace(b"class Demo", b"class  Demo"), "begins with class DemoForCausalLM(", id="spaces"
        ),
        pytest.param(
            lambda text: text.replace(b"(DemoPreTrainedModel, GenerationMixin)", b""),
            "begins with class",
            id="no bases",
        ),
        pytest.param(
            lambda text: text.replace(b"class Demo", b"\x0cclass Demo"), "begins with class", id="form feed before it"
        ),
        pytest.param(lambda text: PATCHED, "the word selfaug in line 3", id="patched already"),
        pytest.param(lambda text: text + b"# for SelfAug\n", "the word selfaug in line 10", id="speaks of SelfAug"),
        pytest.param(
            lambda text: text + b"class SelfAligned: ...\n", "no SelfAligned in a stock file", id="name is taken"
        ),
        pytest.param(lambda text: text + b"def\n", "Python that this interpreter can read", id="no Python"),
        pytest.param(
            lambda text: text + b"return 1\n", "Python that this interpreter can read", id="return outside a function"
        ),
        pytest.param(lambda text: text + b"\0", "Python that this interpreter can read", id="NUL"),
        pytest.param(lambda text: b"\xff\xfe" + text, "Python that this interpreter can read", id="no UTF-8"),
        pytest.param(lambda text: text + b"(" * 5000, "Python that this interpreter can read", id="parentheses"),
        pytest.param(lambda text: text + b"#" * MAX_FILE_BYTES, f"at most {MAX_FILE_BYTES} bytes", id="enormous"),
        pytest.param(lambda text: b"", "found:    none", id="empty"),
    ],
)
def test_a_place_that_is_not_clear_is_refused(change, words):
    assert words in refused(change(STOCK))


def test_a_decorator_on_the_lora_layer_is_refused_since_lines_of_code_stand_before_the_class():
    stock = b"class BaseTunerLayer: ...\n\n\nclass LoraLayer(BaseTunerLayer):\n    x = 1\n"
    assert b"try:\n    from selfaug.hooks import ReferenceSwitch\n" in placed(stock, LAYER)
    assert "a class LoraLayer without a decorator" in refused(
        stock.replace(b"class Lora", b"@final\nclass Lora"), LAYER
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace(b"SelfAligned, Demo", b"Demo"), id="no base class"),
        pytest.param(lambda text: text.replace(LINES["after"], b""), id="no closing line"),
        pytest.param(lambda text: text.replace(LINES["imports"], b""), id="no import"),
        pytest.param(lambda text: text + LINES["imports"], id="import twice"),
        pytest.param(lambda text: text.replace(LINES["before"], LINES["before"][:40] + b"\n"), id="another comment"),
        pytest.param(
            lambda text: text.replace(LINES["before"], b"").replace(b"import torch\n", LINES["before"]), id="moved"
        ),
        pytest.param(lambda text: STOCK, id="stock"),
        pytest.param(lambda text: b"", id="empty"),
    ],
)
def test_what_is_not_the_work_of_place_is_not_taken_out(change):
    with pytest.raises(PatcherError) as caught:
        TABLE.stock(MODEL, change(PATCHED))
    assert caught.value.problems[0].id == "no-seam"


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_damaged_file_is_patched_and_restored_or_refused(data):
    text = STOCK
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        piece = data.draw(
            st.binary(max_size=6) | st.sampled_from([b"\r", b"\n", b"\\", b"#", b"(", b'"""', b";", b"\x0c"])
        )
        text = text[:start] + piece + text[start + data.draw(st.integers(0, 30)) :]
    try:
        patched = TABLE.patched(MODEL, text)
    except PatcherError:
        return
    assert TABLE.stock(MODEL, patched) == text
    (changed,) = [node for node in ast.parse(patched).body if getattr(node, "name", "") == "DemoForCausalLM"]
    assert ast.unparse(changed.bases[0]) == "SelfAligned"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("Subject: x\n\n", id="no lines"),
        pytest.param((TABLE.root / "peft.seam").read_text()[:-20], id="cut off"),
        pytest.param((TABLE.root / "peft.seam").read_text() + "junk\n", id="more"),
        pytest.param((TABLE.root / "peft.seam").read_text().replace("SelfAug (", "Self\u00e4ug ("), id="beyond ASCII"),
        pytest.param((TABLE.root / "peft.seam").read_text().replace("+try:", "+try"), id="no Python"),
        pytest.param((TABLE.root / "peft.seam").read_text().replace("# <<< SelfAug", "# end"), id="nobody's"),
        pytest.param((TABLE.root / "peft.seam").read_text().replace("CLASS", "LoraLayer"), id="a class by name"),
        pytest.param(
            (TABLE.root / "peft.seam").read_text().replace("(ReferenceSwitch,", "(Reference.Switch,"), id="base"
        ),
    ],
)
def test_what_is_no_seam_is_refused(text):
    with pytest.raises(PatcherError) as caught:
        seam.parse(text, "x.seam")
    assert [problem.id for problem in caught.value.problems] == ["bad-patch"]


TWO = families.model("demo", "DemoForCausalLM", "1.0", images="DemoForConditionalGeneration")
IMAGES = b"""

class DemoForConditionalGeneration(DemoPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        self.lm_head = Linear(config)
"""


def test_a_class_for_images_with_a_head_of_its_own_gets_the_seam_too():
    patched = placed(STOCK + IMAGES, TWO)
    assert patched.count(b"(SelfAligned, DemoPreTrainedModel, GenerationMixin):") == 2
    assert patched.count(LINES["before"]) == patched.count(LINES["after"]) == 2
    assert patched.count(LINES["imports"]) == 1
    assert seam.class_names(TWO, STOCK + IMAGES) == TWO.class_names


def test_a_class_for_images_that_holds_a_whole_causal_language_model_stays_stock():
    inside = IMAGES.replace(b"self.lm_head = Linear(config)", b"self.language_model = DemoForCausalLM(config)")
    assert placed(STOCK + inside, TWO) == PATCHED + inside
    assert seam.class_names(TWO, STOCK + inside) == ("DemoForCausalLM",)


def test_a_file_in_which_one_of_two_seams_was_taken_out_is_not_restored():
    patched = placed(STOCK + IMAGES, TWO)
    broken = patched.replace(b"ForConditionalGeneration(SelfAligned, ", b"ForConditionalGeneration(")
    with pytest.raises(PatcherError):
        TABLE.stock(TWO, broken)
