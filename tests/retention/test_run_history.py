"""`--history`: a picture and three lines of one run, from the Trainer's log."""

from __future__ import annotations

import json
import sys

import pytest

from selfaug.retention.__main__ import main


def rows(selfaug=True, steps=4):
    """Two steps an epoch."""
    for step in range(1, steps + 1):
        terms = {"selfaug/nll": 2.0 - 0.2 * step, "selfaug/kl": 0.1 * step, "selfaug/alpha": 0.5}
        yield {"step": step, "epoch": step / 2, "loss": 2.0 - 0.1 * step, **(terms if selfaug else {})}


def write(folder, history):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": list(history)}), encoding="utf-8")


@pytest.fixture
def drawn(tmp_path, capsys):
    def run(folder=tmp_path, status=0):
        assert main(["--history", str(folder)]) == status
        output = capsys.readouterr()
        return output.err if status else output.out

    return run


@pytest.fixture
def lines(monkeypatch):
    """What was drawn: (label, steps, values)."""
    from matplotlib.axes import Axes

    found, plot = [], Axes.plot

    def noting(self, x, y, *arguments, **options):
        found.append((options.get("label", "alpha"), list(x), list(y)))
        return plot(self, x, y, *arguments, **options)

    monkeypatch.setattr(Axes, "plot", noting)
    return found


def test_loss_both_terms_and_alpha_are_drawn_over_the_steps(tmp_path, drawn, lines):
    write(tmp_path, [*rows(), {"step": 4, "train_loss": 1.7, "train_runtime": 3.0}])
    output = drawn().splitlines()
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert [label for label, _, _ in lines] == ["loss", "NLL", "KL to the model without LoRA", "alpha"]
    assert all(steps == [1, 2, 3, 4] for _, steps, _ in lines)
    assert lines[2][2] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert output[:3] == [
        "first (step 1): loss 1.9, nll 1.8, kl 0.1, alpha 0.5",
        "last  (step 4): loss 1.6, nll 1.2, kl 0.4, alpha 0.5",
        "mean of each epoch: 1: loss 1.85, nll 1.7, kl 0.15, alpha 0.5; 2: loss 1.65, nll 1.3, kl 0.35, alpha 0.5",
    ]


def test_a_run_with_selfaug_align_shows_its_mse(tmp_path, drawn, lines):
    renamed = [
        {("selfaug/mse" if name == "selfaug/kl" else name): value for name, value in row.items()} for row in rows()
    ]
    write(tmp_path, renamed)
    output = drawn().splitlines()
    assert [label for label, _, _ in lines] == ["loss", "NLL", "MSE to the model without LoRA", "alpha"]
    assert output[0] == "first (step 1): loss 1.9, nll 1.8, mse 0.1, alpha 0.5"
    assert not any("The log has no" in line for line in output)


def test_a_run_without_selfaug_shows_its_loss_and_says_so(tmp_path, drawn, lines):
    write(tmp_path, rows(selfaug=False))
    assert "The log has no selfaug/kl" in drawn()
    assert [label for label, _, _ in lines] == ["loss"]


def test_the_log_of_the_newest_checkpoint_is_taken_where_the_run_has_none(tmp_path, drawn, lines):
    for step in (9, 10):
        write(tmp_path / f"checkpoint-{step}", rows(steps=step))
    (tmp_path / "checkpoint-²").mkdir()  # no number that int reads
    assert "checkpoint-10" in drawn()
    assert len(lines[0][1]) == 10
    assert (tmp_path / "history.png").is_file()


def test_a_log_that_the_trainer_wrote_is_read(tmp_path, drawn, tiny_model):
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    data = [{"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}] * 4
    arguments = TrainingArguments(tmp_path / "run", num_train_epochs=2, logging_steps=1, per_device_train_batch_size=2,
                                  report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="epoch")  # fmt: skip
    Trainer(AutoModelForCausalLM.from_pretrained(tiny_model), arguments, train_dataset=data).train()
    output = drawn(tmp_path / "run")
    assert "first (step 1)" in output
    assert "last  (step 4)" in output
    assert "; 2: loss" in output


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "has no log of a training"),
        ("{", "trainer_state.json:1: expected JSON"),
        ("[]", "is no log of the Trainer"),
        ('{"log_history": []}', "has no step with a loss"),
        ('{"log_history": [{"step": 1, "eval_loss": 2}]}', "has no step with a loss"),
    ],
)
def test_a_log_that_is_not_there_or_broken_is_refused_with_the_file(tmp_path, drawn, content, problem):
    if content is not None:
        (tmp_path / "trainer_state.json").write_text(content, encoding="utf-8")
    error = drawn(status=1)
    assert problem in error
    assert str(tmp_path) in error
    assert not (tmp_path / "history.png").exists()


def test_a_folder_that_is_not_there_is_refused(tmp_path, drawn):
    assert "there is no folder" in drawn(tmp_path / "nowhere", status=1)


def test_without_matplotlib_the_command_says_what_to_install(tmp_path, drawn, monkeypatch):
    write(tmp_path, rows())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in drawn(status=1)


@pytest.mark.parametrize("words", [["--base", "x"], ["--history", "x", "--out", "y"], []])
def test_it_is_one_run_or_a_whole_measurement(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "--" in capsys.readouterr().err
