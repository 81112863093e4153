from __future__ import annotations

import ast
from pathlib import Path

import pytest
from journal import Journal, runtime_files, tool_files

CODE = Path(__file__).resolve().parents[2] / "Code"


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "step.py"
    file.write_text("one", encoding="utf-8")
    return file


def run(file, source, settings=1):
    """The steps that have to run in a run of three."""
    journal, ran = Journal(file), []
    for name, given, sources in (("a", 0, []), ("b", settings, [source]), ("c", 0, [])):
        if journal.begin(name, given, sources):
            ran.append(name)
            journal.finish(name, answer=42)
    return "".join(ran)


def test_a_finished_step_runs_once(tmp_path, source):
    assert [run(tmp_path / "steps.json", source) for _ in range(2)] == ["abc", ""]


def test_a_changed_setting_reruns_its_step_and_all_later_ones(tmp_path, source):
    run(tmp_path / "steps.json", source)
    assert run(tmp_path / "steps.json", source, settings=2) == "bc"


def test_a_changed_source_file_reruns_its_step_and_all_later_ones(tmp_path, source):
    run(tmp_path / "steps.json", source)
    source.write_text("two", encoding="utf-8")
    assert run(tmp_path / "steps.json", source) == "bc"


def test_a_step_that_was_begun_and_not_finished_runs_again(tmp_path, source):
    file = tmp_path / "steps.json"
    run(file, source)
    Journal(file).begin("a", "another", [])
    assert run(file, source) == "a"


def test_facts_are_kept_for_later_runs(tmp_path, source):
    run(tmp_path / "steps.json", source)
    assert Journal(tmp_path / "steps.json").facts("b")["answer"] == 42


def test_a_damaged_journal_starts_anew(tmp_path, source):
    (tmp_path / "steps.json").write_text('{"a": ', encoding="utf-8")
    assert run(tmp_path / "steps.json", source) == "abc"


def imported_by(start):
    """The modules of Code/ that a module imports, directly or through others: every relative import is followed."""
    seen, waiting = set(), [start]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                package = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                names = [package, *(package / alias.name for alias in node.names)]
                waiting += [name.with_suffix(".py") for name in names if name.with_suffix(".py").is_file()]
                waiting += [name / "__init__.py" for name in names if (name / "__init__.py").is_file()]
    return seen - {CODE / "__init__.py"}


@pytest.mark.parametrize("tool", ["self_dialogue", "retention"])
def test_a_change_in_any_module_that_a_tool_imports_reruns_its_step(tool):
    imported = imported_by(CODE / tool / "__main__.py")
    assert len(imported) > 15
    assert imported <= set(tool_files(CODE, tool))


def test_a_change_in_any_module_that_a_training_imports_reruns_its_step():
    imported = imported_by(CODE / "hooks.py") | imported_by(CODE / "unpatched.py")
    assert len(imported) > 15
    assert imported <= set(runtime_files(CODE))
