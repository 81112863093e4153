"""The pairs of tests/matrix.py, which takes an hour and is no test itself, are the ones that prove something."""

from __future__ import annotations

from pathlib import Path

import pytest
from releases import TABLE

from selfaug_patcher.pins import warnings

QWEN2, LORA = "transformers:qwen2", "peft:lora"


@pytest.fixture
def pairs(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent)
    import matrix

    return matrix.pairs()


def test_the_matrix_has_sixty_pairs_and_every_distinct_file(pairs):
    assert len(set(pairs)) == len(pairs) >= 60
    for target, versions in zip((QWEN2, LORA), zip(*pairs)):
        run = {TABLE.by_version(target, version).stock_sha256 for version in versions}
        assert {pin.stock_sha256 for pin in TABLE.of(target)} - run == set()


@pytest.mark.parametrize("patch", sorted(TABLE.patches))
def test_the_matrix_has_the_first_and_the_last_release_of_each_patch(patch, pairs):
    pinned = [pin.version for pin in TABLE.pins if pin.patch == patch]
    assert {pinned[0], pinned[-1]} <= {version for pair in pairs for version in pair}


def test_each_release_of_transformers_runs_beside_two_pefts(pairs):
    versions = [transformers for transformers, _ in pairs]
    assert all(versions.count(version) >= 2 for version in versions)


def test_no_pair_of_the_matrix_is_known_to_fail(pairs):
    assert [pair for pair in pairs if any("numpy 2" not in text for text in warnings(*pair))] == []
