"""Code/benchmarks: its options, what it counts, what it writes; and docs/performance.md has what its commands give."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "Code" / "benchmarks"
COMMAND = runpy.run_path(str(BENCHMARKS / "__main__.py"), run_name="benchmark_command")
RESULTS = ROOT / "docs" / "performance"
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def benchmark(*words: str, **variables: str) -> subprocess.CompletedProcess:
    """The command in a process of its own: it replaces functions of torch's."""
    for package in ("torch", "transformers", "peft"):
        pytest.importorskip(package)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(BENCHMARKS), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def files() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in RESULTS.iterdir()}


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """What `meta` finds for one layer, started by someone whose own runs sample."""
    folder = tmp_path_factory.mktemp("results") / "new"
    words = ["--lengths", "64", "128", "--layers", "1", "--variants", "sample 0.25", "selfaug"]
    done = benchmark("meta", *words, "--results", str(folder), SELFAUG_SAMPLE="0.25")
    assert not done.returncode, done.stderr
    return json.loads((folder / "meta.json").read_text(encoding="utf-8"))["results"]


def test_flops_grow_with_the_square_of_the_length_by_what_attention_takes(counted):
    """All else is linear in T. Of (T, T, H) there are two products in forward and five in backward."""
    short, long = (counted[T]["stock"]["flops"] for T in ("64", "128"))
    assert long - 2 * short == (2 + 5) * 2 * 896 * (128**2 - 2 * 64**2)


def test_the_callers_own_settings_do_not_change_what_is_measured(counted):
    assert counted["128"]["sample 0.25"]["flops"] < counted["128"]["selfaug"]["flops"]


def test_stock_is_measured_first_whatever_is_asked_for(counted):
    assert [list(found) for found in counted.values()] == [["stock", "sample 0.25", "selfaug"]] * 2


def test_nothing_is_written_unless_a_folder_is_named():
    before = files()
    done = benchmark("meta", "--lengths", "16", "--layers", "1", "--variants", "stock")
    assert "1.000 of stock" in done.stdout, done.stderr
    assert files() == before


def test_cells_of_another_torch_are_not_added_to(tmp_path):
    text = json.dumps({"device": "meta", "torch": "0.1", "results": {"7B": {}}})
    (tmp_path / "shapes.json").write_text(text, encoding="utf-8")
    done = benchmark("shapes", "--shapes", "0.5B", "--lengths", "16", "--results", str(tmp_path))
    assert done.returncode
    assert "name another folder" in done.stderr
    assert (tmp_path / "shapes.json").read_text(encoding="utf-8") == text


@pytest.mark.parametrize(
    "words", ["--rounds 0", "--layers 0", "--lengths -1", "--lengths 1", "--variants fast", "--shape 1B", "--shapes 1B"]
)
def test_an_option_that_cannot_be_measured_is_a_usage_error(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        COMMAND["parser"]().parse_args(["meta", *words.split()])
    assert stopped.value.code == 2
    assert f"argument {words.split()[0]}" in capsys.readouterr().err


def test_the_options_take_the_names_of_what_there_is_to_measure():
    pytest.importorskip("peft")
    from selfaug.benchmarks import slice as sliced

    assert set(COMMAND["VARIANTS"]) == set(sliced.VARIANTS)
    assert COMMAND["SHAPES"] == list(sliced.SHAPES)


def test_the_page_has_the_tables_that_its_results_make():
    filled = runpy.run_path(str(BENCHMARKS / "page.py"))["filled"]
    assert filled(RESULTS, PAGE) == PAGE


def test_the_commands_on_the_page_give_the_rows_that_it_shows():
    asked = {}
    for line in re.findall(r"^    OMP_NUM_THREADS=1 python Code/benchmarks (.*)$", PAGE, re.MULTILINE):
        options = COMMAND["read"](shlex.split(line))
        if options.verb != "page":
            assert options.results == Path("docs/performance")
            asked[COMMAND["_file"](options).name] = options
    assert sorted(asked) == sorted(path.name for path in RESULTS.glob("*.json"))
    for name, options in asked.items():
        facts = json.loads((RESULTS / name).read_text(encoding="utf-8"))
        assert facts["checkpointing"] == options.checkpointing
        assert facts.get("layers", options.layers) == options.layers
        assert facts.get("rounds", options.rounds) == options.rounds
        tables = list(facts["results"].values()) if options.verb == "shapes" else [facts["results"]]
        if options.verb == "shapes":
            assert list(facts["results"]) == options.shapes
        for table in tables:
            assert list(map(int, table)) == options.lengths
            if options.verb not in ("shares", "chunks"):
                assert all(list(found) == options.variants for found in table.values())
