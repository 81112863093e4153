"""The whole command on a tiny random model."""

from __future__ import annotations

import json
import sys

import pytest

GENERAL = {"kl", "reverse_kl", "top1", "base_nll", "nll", "tokens", "kl_by_position", "length", "ended", "answer"}
TASK = {"answer", "exact_match", "contains", "f1", "input_kl", "input_top1"}


def test_base_and_adapters_are_measured_side_by_side(measured, adapters, items, result, files):
    output = measured("--adapter", f"far={adapters['far']}", "--adapter", f"still={adapters['still']}")
    base, far, still = (items(name) for name in ("base", "far", "still"))
    for name, tuned in (("far", far), ("still", still)):
        assert len(tuned["general"]) == 4
        assert len(tuned["task"]) == 3
        assert all(set(row) >= GENERAL for row in tuned["general"]), name
        assert all(set(row) >= TASK for row in tuned["task"]), name
        assert [row["tokens"] for row in tuned["general"]] == [len(row["ids"]) for row in base["general"]]
    for row in far["general"]:
        assert row["kl"] == pytest.approx(sum(row["kl_by_position"]) / row["tokens"], abs=1e-5)
        assert row["kl"] > 0
        assert row["reverse_kl"] > 0
    assert all((row["kl"], row["top1"]) == (0, 1) for row in still["general"])
    assert all((row["input_kl"], row["input_top1"]) == (0, 1) for row in still["task"])
    assert [row["answer"] for row in still["general"]] == [row["answer"] for row in base["general"]]
    assert [row["nll"] for row in base["general"]] == [row["base_nll"] for row in far["general"]]

    found = result()
    assert list(found["models"]) == ["base", "far", "still"]
    assert list(found["differences"]) == ["still"]
    assert set(found["differences"]["still"]) == set(found["models"]["far"])
    assert found["differences"]["still"]["kl"]["mean"] == pytest.approx(-found["models"]["far"]["kl"]["mean"])
    assert found["settings"]["compared_with"] == "far"
    counters = [line for line in output.splitlines() if line.startswith("far, drift")]
    assert counters == [f"far, drift: {n}/4" for n in (1, 2, 3, 4)]


def test_a_second_run_measures_nothing_and_a_further_adapter_only_itself(
    measured, adapters, result, files, monkeypatch
):
    from selfaug.retention import base_model

    both = ("--adapter", f"far={adapters['far']}", "--adapter", f"near={adapters['near']}")
    first = measured(*both[:2])
    before = result()
    with monkeypatch.context() as context:
        context.setattr(base_model, "load_model", lambda *args: pytest.fail("the model was loaded"))
        assert "far: measured before" in measured(*both[:2])
        assert result() == before
    second = measured(*both)
    assert "base, instructions: 4/4" in first
    assert "base, " not in second
    assert "far, " not in second
    assert "near, drift: 4/4" in second
    assert result()["models"]["far"] == before["models"]["far"]


def test_other_prompts_limits_weights_or_rows_are_measured_anew_and_nothing_else(measured, adapters, files, items):
    far = ("--adapter", f"far={adapters['far']}")
    measured(*far)
    (files / "task.jsonl").write_text(json.dumps({"prompt": "Question 0?", "answer": "no"}) + "\n", encoding="utf-8")
    output = measured(*far)
    assert "instructions" not in output
    assert "far, drift" not in output
    assert "far, task: 1/1" in output
    assert len(items("far")["task"]) == 1

    assert "far, drift: 4/4" in measured(*far, limit=6)
    other = measured("--adapter", f"far={adapters['near']}", limit=6)
    assert "far, drift: 4/4" in other
    assert "base, " not in other


def test_an_interrupted_run_goes_on_with_the_section_that_it_was_in(measured, adapters, monkeypatch, items):
    from selfaug.retention import drift

    def interrupt(*args):
        raise KeyboardInterrupt

    far = ("--adapter", f"far={adapters['far']}")
    with monkeypatch.context() as context:
        context.setattr(drift, "measure", interrupt)
        assert "continues from here" in measured(*far, status=130)
    output = measured(*far)
    assert "instructions" not in output
    assert "far, drift: 4/4" in output


def test_without_input_kl_only_those_figures_are_left_out(measured, adapters, result):
    output = measured("--adapter", f"far={adapters['far']}", "--input-count", "0")
    assert "input_kl" not in result()["models"]["far"]
    assert "task input" not in output
    assert "exact_match" in result()["models"]["far"]


def test_a_task_is_optional(adapters, tiny_model, tmp_path):
    from selfaug.retention.__main__ import main

    (tmp_path / "general.txt").write_text("Say something.\n", encoding="utf-8")
    command = ["--base", str(tiny_model), "--general", str(tmp_path / "general.txt"), "--answer-limit", "3"]
    assert main([*command, "--adapter", f"far={adapters['far']}", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "retention.json").read_text(encoding="utf-8"))
    assert set(found["models"]["far"]) >= {"kl", "perplexity", "answer_length"}
    assert "exact_match" not in found["models"]["far"]


def test_an_adapter_is_measured_as_if_it_were_the_only_one(measured, make_adapter, adapters, result, files):
    other = make_adapter(0.5, r=2, target_modules=["q_proj", "down_proj"])
    near = ("--adapter", f"near={adapters['near']}")
    measured("--adapter", f"other={other}", "--adapter", f"far={adapters['far']}", *near)
    together = result()["models"]["near"]
    (files / "out" / "items" / "near.json").unlink()
    measured(*near)
    assert together["kl"]["mean"] > 0
    assert together["kl"] == pytest.approx(result()["models"]["near"]["kl"])


def test_plots_need_matplotlib_and_nothing_else_does(measured, adapters, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    output = measured("--adapter", f"far={adapters['far']}")
    assert "no plots: they need matplotlib" in output
    assert (files / "out" / "retention.md").is_file()
    assert not list((files / "out").glob("*.png"))


def test_plots_are_written_as_png_and_svg(measured, adapters, files):
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "selfaug/nll": 0.9, "selfaug/kl": 0.1}]
    state = adapters["near"] / "checkpoint-2" / "trainer_state.json"
    state.parent.mkdir(exist_ok=True)
    state.write_text(json.dumps({"log_history": history}), encoding="utf-8")
    output = measured("--adapter", f"far={adapters['far']}", "--adapter", f"near={adapters['near']}")
    for name in ("learned_against_kept", "kl_by_position", "training", "shift_against_forgetting"):
        assert (files / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (files / "out" / f"{name}.svg").read_text(encoding="utf-8")
        assert f"{name}.svg" in output
    first = {file.name: file.read_bytes() for file in (files / "out").glob("*.svg")}
    measured("--adapter", f"far={adapters['far']}", "--adapter", f"near={adapters['near']}")
    assert first == {file.name: file.read_bytes() for file in (files / "out").glob("*.svg")}

    measured("--adapter", f"near={adapters['near']}", "--input-count", "0")
    left = {file.stem for file in (files / "out").iterdir() if file.suffix in (".png", ".svg")}
    assert left == {"learned_against_kept", "kl_by_position", "training"}


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(measured, adapters, files):
    error = measured("--adapter", f"far={adapters['far']}", "--device", "gpu7", status=1)
    assert "error[no-device]: --device gpu7 cannot be used here" in error
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        pytest.param(["--adapter", "nowhere"], "nowhere holds no adapter", id="no folder"),
        pytest.param(["--adapter", "base=x"], "the name base is taken", id="name of the base"),
        pytest.param(["--adapter", "a=x", "--adapter", "a=y"], "the name a is taken", id="name twice"),
        pytest.param(["--adapter", "a=x", "--lm-eval", "b=y"], "of which model", id="results of none"),
        pytest.param(["--adapter", "a=x", "--lm-eval", "a=y"], "no results of lm-evaluation-harness", id="no results"),
        pytest.param(["--adapter", "a=x", "--base", "/nowhere"], "holds no adapter", id="adapter before base"),
        pytest.param(["--adapter", "a=x", "--out", __file__], "cannot be a folder", id="a file to write into"),
        pytest.param(["--adapter", "a=x", "--out", f"{__file__}/x"], "cannot be a folder", id="a folder in a file"),
    ],
)
def test_bad_options_are_refused_in_plain_words(measured, options, problem):
    error = measured(*options, status=1)
    assert problem in error
    assert "Traceback" not in error
