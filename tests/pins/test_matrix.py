"""The pairs of tests/matrix.py, which takes an hour and is no test itself, are the ones that prove something."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from packaging.version import Version
from releases import TABLE

from selfaug_patcher.pairs import warnings

QWEN2, LORA = "transformers:qwen2", "peft:lora"


ROOT = Path(__file__).parent.parent.parent
PUT = "put it into tests/matrix_pairs.txt, as `nox -s new-releases` does: docs/rebasing.md"


@pytest.fixture
def matrix(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests")
    import matrix

    return matrix


@pytest.fixture
def pairs(matrix):
    return matrix.pairs()


@pytest.fixture
def table(matrix, monkeypatch, tmp_path):
    """The module of the pairs, with a file of three rows."""
    (tmp_path / "pairs.txt").write_text("# what this is\n\n1.0 0.1 0.3\n1.9 0.3 0.1 0.2\n1.10 0.3 0.2\n")
    monkeypatch.setattr(matrix.matrix_pairs, "PATH", tmp_path / "pairs.txt")
    return matrix.matrix_pairs


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
        pytest.param(["peft==9.9"], "matrix_pairs.txt has no peft 9.9: put it in, or give both", id="not in PAIRS"),
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
    monkeypatch.setattr(matrix, "prove", Mock(return_value={"checks": "52", "kl": "1e-3"}))
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
    matrix.write_docs({**result(pairs[3], checks="52", kl="7e-1"), **result(("9.9", "9.9"), kl="1")}, page)
    assert [new for old, new in zip(before.split("\n"), page.read_text().split("\n"), strict=True) if old != new] == [
        f"| {pairs[3][0]} | {pairs[3][1]} | 52 | 7e-1 nats |"
    ]
    matrix.write_docs(result(pairs[3], failed="x", stock="fails too: no y"), page)
    assert f"| {pairs[3][0]} | {pairs[3][1]} | fails in stock, too | `no y` |" in page.read_text()
    assert f"\n{len(pairs) - 1} of {len(pairs)} work.\n" in page.read_text()


def test_a_pair_without_a_good_result_is_told_not_left_out(matrix, pairs, page, monkeypatch):
    before = page.read_text()
    with pytest.raises(matrix.Failure, match="fails with SelfAug only"):
        matrix.write_docs(result(pairs[3], failed="x", stock="works"), page)
    monkeypatch.setattr(matrix, "pairs", lambda: [*pairs, ("9.9", "0.21.2")])
    with pytest.raises(
        matrix.Failure, match=r"peft 0.21.2 was not run\ndo: python tests/matrix.py transformers==9.9 pef"
    ):
        matrix.write_docs({}, page)
    assert page.read_text() == before


def test_the_pairs_are_written_as_they_are_read_and_under_their_comment(table):
    rows = table.read()
    table.write(dict(reversed(rows.items())))
    assert table.read() == rows == {"1.0": ("0.1", "0.3"), "1.9": ("0.3", "0.1", "0.2"), "1.10": ("0.3", "0.2")}
    assert table.PATH.read_text().startswith("# what this is\n\n1.0 ")


def test_the_pairs_of_this_checkout_are_in_the_form_that_the_command_writes(matrix, monkeypatch, tmp_path):
    before = matrix.matrix_pairs.PATH.read_text()
    monkeypatch.setattr(matrix.matrix_pairs, "PATH", Path(shutil.copy(matrix.matrix_pairs.PATH, tmp_path)))
    matrix.matrix_pairs.write(matrix.matrix_pairs.read())
    assert matrix.matrix_pairs.PATH.read_text() == before


@pytest.mark.parametrize(
    ("release", "same", "changed", "to_run"),
    [
        pytest.param(
            ("transformers", "1.11"), False, {"1.11": ("0.3", "0.2")}, [("1.11", "0.3"), ("1.11", "0.2")], id="new file"
        ),
        pytest.param(
            ("transformers", "1.9.1"), False, {"1.9.1": ("0.3", "0.1")}, [("1.9.1", "0.3"), ("1.9.1", "0.1")],
            id="new file of an older series",
        ),
        pytest.param(
            ("transformers", "1.11"), True, {"1.10": None, "1.11": ("0.3", "0.2")}, [("1.11", "0.3"), ("1.11", "0.2")],
            id="known file",
        ),
        pytest.param(("peft", "0.4"), False, {"1.10": ("0.3", "0.2", "0.4")}, [("1.10", "0.4")], id="new peft"),
        pytest.param(("peft", "0.4"), True, {"1.10": ("0.4", "0.2")}, [("1.10", "0.4")], id="peft, known file"),
        pytest.param(
            ("peft", "0.1.1"), False, {"1.9": ("0.3", "0.1", "0.2", "0.1.1")}, [("1.9", "0.1.1")], id="older peft"
        ),
    ],
)  # fmt: skip
def test_a_new_release_gets_pairs_and_no_distinct_file_loses_its_last_one(release, same, changed, to_run, table):
    rows = table.read()
    after, pairs = table.with_release(rows, *release, lambda older: same)
    assert after == {row: pefts for row, pefts in {**rows, **changed}.items() if pefts}
    assert list(after) == sorted(after, key=Version)
    assert pairs == to_run


@pytest.mark.parametrize(
    ("output", "words"),
    [
        pytest.param(
            "ok    a: b\nFAIL  exact: plain: expected: 0\n      found:    1\nok    c: d\nFAIL  e: f\n",
            "exact: plain: expected: 0; found: 1 (and 1 more check)", id="checks",
        ),
        pytest.param("Traceback\nImportError: no x\nbye\n", "ImportError: no x", id="an error"),
        pytest.param("error[no-seam]: no place\n  do: y\n", "error[no-seam]: no place", id="a refusal"),
        pytest.param("", "no output", id="nothing"),
    ],
)  # fmt: skip
def test_a_failure_says_in_one_line_which_check_did_not_hold(output, words, matrix):
    from matrix_environments import reason

    assert reason(output) == words


def test_a_failure_says_in_which_step_it_was(matrix):
    with pytest.raises(matrix.Failure, match=r"^verify: exact: plain: not 0$"), matrix.named("verify"):
        raise matrix.Failure("exact: plain: not 0")


@pytest.mark.parametrize(
    ("said", "kl", "outcome"),
    [
        pytest.param(
            "ok    hash: x\nok    exact: y\nok    steps: left out: z\n",
            (0.0, 0.1),
            {"checks": "2", "kl": "1.00e-01"},
            id="good",
        ),
        pytest.param(
            "ok    hash: x\n", (0.0, 0.1), "verify: expected: the checks of the trial; found: 1", id="no trial"
        ),
        pytest.param("ok    exact: y\n", (0.1, 0.1), "two training steps: expected: KL 0, then more", id="not 0"),
        pytest.param("ok    exact: y\n", (0.0, 0.0), "two training steps: expected: KL 0, then more", id="stays 0"),
    ],
)
def test_a_pair_works_if_the_trial_was_made_and_kl_is_0_then_positive(said, kl, outcome, matrix, monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "run", lambda command, folder: said if "verify" in command else "")
    monkeypatch.setattr(matrix, "train", lambda python, work: [{"selfaug/kl": value} for value in kl])
    if isinstance(outcome, dict):
        assert matrix.prove(Mock(), tmp_path) == outcome
    else:
        with pytest.raises(matrix.Failure, match=outcome):
            matrix.prove(Mock(), tmp_path)


def test_an_environment_links_what_is_here_but_not_what_fits_one_release_only(matrix, tmp_path):
    linked = {path.name for path in matrix.Environments(tmp_path)._base().iterdir()}
    assert {"torch", "packaging"} <= linked
    assert not {"transformers", "peft", "tokenizers", "huggingface_hub", "datasets"} & linked
