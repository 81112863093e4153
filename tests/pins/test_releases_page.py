"""docs/releases.md and docs/rebasing.md say what the pin table and the list of bad pairs say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from releases import TABLE

from selfaug_patcher.pairs import BAD_PAIRS

DOCS = Path(__file__).parent.parent.parent / "docs"
PAGE = (DOCS / "releases.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("pair", BAD_PAIRS, ids=lambda pair: f"{pair.peft or 'any'}, {pair.transformers}")
def test_each_bad_pair_has_its_line_with_the_release_to_take(pair):
    (line,) = [line for line in PAGE.split("\n") if line.startswith(f"| {pair.peft or 'any'} | {pair.transformers} |")]
    for package, version in re.findall(r'"(\w+)==([\d.]+)"', pair.do):
        assert f"{package} {version}" in line


def test_the_example_of_the_rebasing_page_is_real():
    text = (DOCS / "rebasing.md").read_text(encoding="utf-8")
    assert "transformers 5.22.1 has the transformers:qwen2 of 5.21.0: pinned." in text
    assert TABLE.by_version("transformers:qwen2", "5.22.1").stock_sha256 == (
        TABLE.by_version("transformers:qwen2", "5.21.0").stock_sha256
    )
