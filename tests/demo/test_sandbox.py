from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import sandbox
from sandbox import COUNTER, Progress, Sandbox, StepFailed, duration, environment, run

DEMO = Path(sandbox.__file__).parent
OURS = {"sandbox", "journal", "ragset", "report", "dialogues", "humaneval_file"}


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names came with Python 3.10")
@pytest.mark.parametrize("name", ["__main__", *sorted(OURS)])
def test_what_runs_in_the_users_python_needs_the_standard_library_alone(name):
    tree = ast.parse((DEMO / f"{name}.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    # of Code, too: test_demo.py starts the demo without packages
    assert {module.split(".")[0] for module in imported} - OURS - {"Code"} <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("line", "found"),
    [
        pytest.param("lora, drift: 7/48", ("lora, drift", "7", "48"), id="our own"),
        pytest.param(" 19%|█▉        | 9/48 [01:41<07:32, 11.61s/it]", (None, "9", "48"), id="tqdm"),
        pytest.param(
            "Loading weights: 100%|██████| 362/362 [00:00<00:00]", (None, "362", "362"), id="tqdm with a name"
        ),
        pytest.param("Collecting torch==2.13.0 (from -r requirements.txt (line 2))", None, id="pip"),
        pytest.param("{'loss': '0.8026', 'epoch': '0.375'}", None, id="a log of the Trainer"),
    ],
)
def test_counters_are_read_from_our_scripts_and_from_tqdm(line, found):
    match = COUNTER.match(line)
    assert (match and (match["label"], match["done"], match["total"])) == found


def test_time_left_is_reckoned_from_the_steps_of_this_count():
    progress = Progress("train")
    assert progress.count(COUNTER.match("a: 0/10"), now=100.0) == "a 0/10"
    assert progress.count(COUNTER.match("a: 4/10"), now=140.0) == "a 4/10, about 1:00 left"
    assert progress.count(COUNTER.match("b: 2/20"), now=150.0) == "b 2/20"
    assert progress.count(COUNTER.match("b: 4/20"), now=160.0) == "b 4/20, about 1:20 left"


def test_a_failed_child_is_told_with_the_end_of_its_output_and_the_log(tmp_path):
    script = "import sys; [print('line', 2 * i) for i in range(40)]; sys.exit('no such model')"
    with pytest.raises(StepFailed) as failure:
        run([sys.executable, "-c", script], tmp_path / "step.log", "step")
    assert "ended with exit code 1" in str(failure.value)
    assert "no such model" in str(failure.value)
    assert "line 78" in str(failure.value)
    assert "line 10" not in str(failure.value)
    assert str(tmp_path / "step.log") in str(failure.value)
    assert "line 10" in (tmp_path / "step.log").read_text(encoding="utf-8")


def test_output_with_carriage_returns_comes_back_as_lines(tmp_path):
    script = r"print('1/2\r2/2\ndone', end='')"
    assert run([sys.executable, "-c", script], tmp_path / "log", "x").splitlines() == ["1/2", "2/2", "done"]


def test_the_users_python_and_selfaug_settings_do_not_reach_the_demo(monkeypatch):
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "SELFAUG_POSITIONS"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("PIP_INDEX_URL", "kept")
    found = environment()
    assert not {"PYTHONPATH", "VIRTUAL_ENV", "SELFAUG_POSITIONS"} & set(found)
    assert found["PIP_INDEX_URL"] == "kept"


def test_a_folder_is_taken_if_it_is_new_empty_or_of_an_earlier_run(tmp_path):
    for _ in range(2):
        Sandbox(tmp_path / "new" / "demo")
    assert sorted(file.name for file in (tmp_path / "new" / "demo").iterdir()) == ["logs", "steps.json"]


def test_a_folder_with_other_files_is_left_as_it_is(tmp_path):
    (tmp_path / "venv").mkdir()
    with pytest.raises(StepFailed, match=r"has files in it and no steps\.json.*\n.*Nothing was changed"):
        Sandbox(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["venv"]
    with pytest.raises(StepFailed, match="cannot be the output folder"):
        Sandbox(Path(__file__))


def test_durations_are_minutes_and_seconds():
    assert [duration(seconds) for seconds in (0, 59.6, 605)] == ["0:00", "1:00", "10:05"]
