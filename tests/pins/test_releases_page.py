"""docs/releases.md and docs/rebasing.md say what the pin table and the list of bad pairs say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from releases import TABLE

from selfaug_patcher import pins
from selfaug_patcher.pairs import BAD_PAIRS

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "releases.md").read_text(encoding="utf-8")


def test_the_pages_say_how_many_patches_there_are():
    numbers = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    transformers, peft = (numbers[len({pin.patch for pin in TABLE.of(target.name)})] for target in pins.TARGETS)
    words = " ".join((DOCS / "rebasing.md").read_text(encoding="utf-8").split())
    assert f"{transformers} patches serve all releases of transformers since 4.37.0, {peft} all of peft since" in words
    assert f"The {transformers} patches for transformers make the same change." in PAGE


@pytest.mark.parametrize("pair", BAD_PAIRS, ids=lambda pair: f"{pair.peft or 'any'}, {pair.transformers}")
def test_each_bad_pair_has_its_line_with_the_release_to_take(pair):
    (line,) = [line for line in PAGE.split("\n") if line.startswith(f"| {pair.peft or 'any'} | {pair.transformers} |")]
    for package, version in re.findall(r'"(\w+)==([\d.]+)"', pair.do):
        assert f"{package} {version}" in line


def test_the_example_of_the_rebasing_page_is_real():
    text = (DOCS / "rebasing.md").read_text(encoding="utf-8")
    assert "has the file of 5.21.0: pinned with transformers/modeling_qwen2-5.0.0rc0.patch." in text
    assert TABLE.by_version("transformers:qwen2", "5.22.1").stock_sha256 == (
        TABLE.by_version("transformers:qwen2", "5.21.0").stock_sha256
    )
    hunk = TABLE.patches["transformers/modeling_qwen2-5.0.0rc0.patch"].hunks[1]
    old = TABLE.patches["transformers/modeling_qwen2-4.52.0.patch"].hunks[1]
    assert b"".join(old.after[1:]).decode() in text
    assert hunk.before[-1].decode() in text
