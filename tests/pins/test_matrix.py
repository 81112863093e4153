"""The pairs of tests/matrix.py, which takes an hour and is no test itself, are the ones that prove something."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from releases import TABLE

from selfaug_patcher.pairs import warnings

QWEN2, LORA = "transformers:qwen2", "peft:lora"


ROOT = Path(__file__).parent.parent.parent
PUT = "put it into PAIRS of tests/matrix.py: docs/rebasing.md, step 3"


@pytest.fixture
def matrix(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests")
    import matrix

    return matrix


@pytest.fixture
def pairs(matrix):
    return matrix.pairs()


def test_the_matrix_has_sixty_pairs_and_every_distinct_file(pairs):
    assert len(set(pairs)) == len(pairs) >= 60
    for target, versions in zip((QWEN2, LORA), zip(*pairs)):
        run = {TABLE.by_version(target, version).stock_sha256 for version in versions}
        missing = [pin.version for pin in TABLE.of(target) if pin.stock_sha256 not in run]
        assert not missing, PUT


def test_each_release_of_transformers_runs_beside_two_pefts(pairs):
    versions = [transformers for transformers, _ in pairs]
    assert all(versions.count(version) >= 2 for version in versions)


def test_no_pair_of_the_matrix_is_known_to_fail(pairs):
    assert [pair for pair in pairs if any("numpy 2" not in text for text in warnings(*pair))] == []


def test_the_page_has_a_line_for_each_pair_and_their_number(pairs):
    block = (ROOT / "docs" / "releases.md").read_text().split("<!-- matrix: begin -->")[1].split("<!-- matrix: end")[0]
    assert re.findall(r"^\| (\d\S+) \| (\S+) \|", block, re.MULTILINE) == pairs, "run python tests/matrix.py --docs"
    assert f"of {len(pairs)} work." in block


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["tranformers==5.23.0"], "found 'tranformers==5.23.0'", id="misspelt package"),
        pytest.param(["5.23.0"], "found '5.23.0'", id="no package"),
        pytest.param(["transformers=="], "found 'transformers=='", id="no version"),
        pytest.param(["peft==0.6.0", "peft==0.7.1"], "expected a package once", id="a package twice"),
        pytest.param(["peft==9.9"], "PAIRS has no peft 9.9: put it in, or give both", id="not in PAIRS"),
        pytest.param(["--docs"], "no results in ", id="no results to show"),
    ],
)
def test_what_names_no_pairs_is_a_usage_error(arguments, words, matrix, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["matrix.py", *arguments, "--results", str(tmp_path / "none.json")])
    with pytest.raises(SystemExit) as caught:
        matrix.main()
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_one_release_chooses_its_pairs_and_two_are_a_pair(matrix, pairs):
    assert matrix.choose([]) == pairs
    newest = pairs[-1][0]
    assert matrix.choose([("transformers", newest)]) == [pair for pair in pairs if pair[0] == newest]
    assert matrix.choose([("peft", "0.6.1"), ("transformers", "9.9")]) == [("9.9", "0.6.1")]


@pytest.fixture
def ran(matrix, monkeypatch, tmp_path):
    """A function that runs pairs, all of which work, without an environment; what the results file then has."""
    monkeypatch.setattr(matrix, "Environments", Mock())
    monkeypatch.setattr(matrix, "tiny_model", Mock())
    monkeypatch.setattr(matrix, "prove", Mock(return_value="1e-3"))
    monkeypatch.setattr(matrix.wheels, "fetch", Mock())

    def run(wanted, **options):
        matrix.matrix(wanted, tmp_path, tmp_path / "matrix.json", **options)
        return [(row["transformers"], row["peft"]) for row in json.loads((tmp_path / "matrix.json").read_text())]

    return run


def test_the_results_of_a_few_pairs_are_kept_beside_those_of_others(ran):
    assert ran([("1", "1")]) == [("1", "1")]
    assert ran([("2", "2")]) == [("1", "1"), ("2", "2")]
    assert ran([("3", "3")], full=True) == [("3", "3")]
    assert ran([("3", "3"), ("4", "4")], full=True, resume=True) == [("3", "3"), ("4", "4")]


def result(pair, **more):
    return {pair: {"transformers": pair[0], "peft": pair[1], "kl": "", "failed": "", "stock": "", **more}}


@pytest.fixture
def page(tmp_path):
    return Path(shutil.copy(ROOT / "docs" / "releases.md", tmp_path))


def test_the_page_takes_what_was_run_here_and_keeps_the_other_lines(matrix, pairs, page):
    before = page.read_text()
    matrix.write_docs({}, page)
    assert page.read_text() == before
    matrix.write_docs({**result(pairs[3], kl="7e-1"), **result(("9.9", "9.9"), kl="1")}, page)
    assert [new for old, new in zip(before.split("\n"), page.read_text().split("\n"), strict=True) if old != new] == [
        f"| {pairs[3][0]} | {pairs[3][1]} | ok | 7e-1 nats |"
    ]
    matrix.write_docs(result(pairs[3], failed="x", stock="fails too: no y"), page)
    assert f"| {pairs[3][0]} | {pairs[3][1]} | fails in stock, too | `no y` |" in page.read_text()
    assert f"\n{len(pairs) - 1} of {len(pairs)} work.\n" in page.read_text()


def test_a_pair_without_a_good_result_is_told_not_left_out(matrix, pairs, page, monkeypatch):
    before = page.read_text()
    with pytest.raises(matrix.Failure, match="fails with SelfAug only"):
        matrix.write_docs(result(pairs[3], failed="x", stock="works"), page)
    monkeypatch.setattr(matrix, "PAIRS", matrix.PAIRS + "9.9  0.21.2\n")
    with pytest.raises(
        matrix.Failure, match=r"peft 0.21.2 was not run\ndo: python tests/matrix.py transformers==9.9 pef"
    ):
        matrix.write_docs({}, page)
    assert page.read_text() == before
