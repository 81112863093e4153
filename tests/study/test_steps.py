"""What the study runs, in which order, with which settings; the children are stand-ins that write what is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments import ARMS, Setting
from sandbox import StepFailed
from study import STOCK, Given, Study

SETTING = Setting(train=6, test=5, general=2, dialogues=2)
GENERAL = {"kl": 0.1, "reverse_kl": 0.1, "top1": 1.0, "length": 3, "ended": True, "nll": 0.2, "base_nll": 0.1}
TASK = {"exact_match": 1.0, "contains": 1.0, "f1": 1.0}


def put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")


class Stage(Study):
    """A study whose children are recorded, and do nothing but leave their files."""

    broken = ()
    versions_found = '{"torch": "2.13.0"}'

    def child(self, name, command, settings=None):
        self.children = [*getattr(self, "children", []), (name, list(command), dict(settings or {}))]
        if name in self.broken:
            raise StepFailed(f"{name} broke")
        if name == "versions":
            return self.versions_found
        step, _, run = name.partition("-")
        folder = self.paths.output / "runs" / run
        if step == "train":
            spent = {"steps": 4, "cpu_seconds": 8.0}
            half = {"steps": 2, "cpu_seconds": 4.0}
            put(
                folder / "spent.json", {"process": {"peak_mb": 9, "cpu_seconds": 9}, "training": spent, "halfway": half}
            )
            patched = {} if settings == STOCK else {"selfaug/nll": 0.9, "selfaug/kl": 0.1}
            rows = [{"loss": 1.0, **patched}] * 4
            put(folder / "adapter" / "trainer_state.json", {"log_history": rows})
            put(folder / "halfway" / "adapter_config.json", {})
        elif step == "mix":
            put(Path(command[command.index("--out") + 1]), {})
        elif step == "dialogues":
            put(self.paths.output / "data" / f"dialogues-{run}.spent.json", {"process": {"cpu_seconds": 100.0}})
        elif step == "measure":
            rows = {"general": [GENERAL] * 2, "task": [TASK] * 5}
            base = folder / "retention" / "items" / "base.json"
            if not base.exists():
                self.bases = [*getattr(self, "bases", []), run]
            put(base, {**rows, "of": run})
            put(folder / "retention" / "items" / f"{run}.json", {**rows, "task": [{**TASK, "input_kl": 0.1}] * 5})
        elif step == "code":
            rows = [{"task_id": f"HumanEval/{n}", "passed": n == 10, "length": n, "ended": True} for n in (10, 2, 1)]
            out = Path(command[command.index("--out") + 1])
            out.write_text("\n".join(json.dumps(row) for row in [{"key": ""}, *rows]), encoding="utf-8")
        return ""

    def called(self):
        return [name for name, _, _ in getattr(self, "children", [])]


@pytest.fixture
def stage(tmp_path):
    def make(arms, seeds=(0,), setting=SETTING, jobs=1, results="results", model="someone/small", task=None, code=None):
        given = Given(tmp_path / "out", tmp_path / results, arms, seeds, jobs, "python", model, task, code)
        return Stage(given, setting)

    return make


def record(tmp_path, name):
    return json.loads((tmp_path / "results" / "runs" / f"{name}.json").read_text(encoding="utf-8"))


def test_plain_arms_train_on_stock_packages_and_the_others_patched_in_memory(stage, tmp_path):
    study = stage(["lora", "lower-lr", "selfaug-0.3", "output"])
    assert study.run() == {}
    trained = {name: (command, settings) for name, command, settings in study.children if name.startswith("train")}
    for name in ("lora", "lower-lr"):
        command, settings = trained[f"train-{name}-0"]
        assert settings == {"SELFAUG": "0"}
        assert "selfaug_patcher" not in command
    for name in ("selfaug-0.3", "output"):
        command, settings = trained[f"train-{name}-0"]
        assert command[:4] == ["-m", "selfaug_patcher", "run", "--all"], "the model may be of any family"
        assert settings == dict(ARMS[name].settings)
    scripts = {tuple(part for part in command if part.endswith("train_lora.py")) for command, _ in trained.values()}
    assert len(scripts) == 1
    assert record(tmp_path, "selfaug-0.3-0")["log"] == {"nll": [0.9] * 4, "kl": [0.1] * 4}
    assert record(tmp_path, "lora-0")["log"] == {"nll": [1.0] * 4}


def test_full_fine_tuning_fills_a_cache_and_trains_with_it(stage, tmp_path):
    study = stage(["full", "full-selfaug"])
    assert study.run() == {}
    called = study.called()
    assert [name for name in called if name.startswith("cache")] == ["cache-full-selfaug-0"]
    assert called.index("cache-full-selfaug-0") < called.index("train-full-selfaug-0")
    filled, trained, plain = (
        next(one for one in study.children if one[0] == name)
        for name in ("cache-full-selfaug-0", "train-full-selfaug-0", "train-full-0")
    )
    assert filled[1][filled[1].index("--cache") + 1] == trained[2]["SELFAUG_CACHE"]
    assert filled[1][filled[1].index("--data") + 1] == trained[1][trained[1].index("--data") + 1]
    assert {**filled[2], "SELFAUG_CACHE": trained[2]["SELFAUG_CACHE"]} == trained[2], "the entries depend on settings"
    assert plain[2] == {"SELFAUG": "0"}
    assert stage(["full-selfaug"], results="other").run() == {}


def test_humaneval_is_measured_for_every_run_and_once_for_the_base(stage, tmp_path):
    file = tmp_path / "HumanEval.jsonl.gz"
    problem = {"task_id": "HumanEval/1", "prompt": "", "entry_point": "f", "test": ""}
    put(file, problem)
    study = stage(["lora", "mlp-only"], code=file)
    assert study.run() == {}
    asked = {name: command for name, command, _ in study.children if name.startswith("code")}
    assert sorted(asked) == ["code-base", "code-lora-0", "code-mlp-only-0"]
    assert "--adapter" not in asked["code-base"]
    command = asked["code-mlp-only-0"]
    assert command[command.index("--adapter") + 1] == str(tmp_path / "out" / "runs" / "mlp-only-0" / "adapter")
    for name in ("base", "lora-0"):
        assert record(tmp_path, name)["code"] == {"passed": [0, 0, 1], "length": [1, 2, 10], "ended": [1, 1, 1]}
    stage(["lora"], results="without").run()
    with pytest.raises(StepFailed, match="code None, now "):
        stage(["lora"], results="without", code=file).run()


def test_alphas_end_is_given_to_the_runner_and_stands_in_the_record(stage, tmp_path):
    study = stage(["falling"])
    study.run()
    command = next(command for name, command, _ in study.children if name == "train-falling-0")
    assert command[command.index("--alpha-to") + 1] == "0"
    assert record(tmp_path, "falling-0")["alpha_to"] == 0


def test_the_base_model_is_measured_once_and_before_the_other_arms(stage, tmp_path):
    study = stage(["lora", "lower-rank", "selfaug-0.5"], seeds=(0, 1), jobs=2)
    others = [task for task in study.tasks(study.runs) if task.name.startswith("measure")][1:]
    assert all("measure lora-0" in task.after for task in others)
    study.run()
    assert study.bases == ["lora-0"]
    measured = [name for name in study.called() if name.startswith("measure")]
    assert measured[0] == "measure-lora-0"
    assert len(measured) == 6
    assert (tmp_path / "out" / "base.json").exists()

    more = stage(["mlp-only", "lower-lr"])
    tasks = [task for task in more.tasks(more.runs) if task.name.startswith("measure")]
    assert not any(task.after for task in tasks), "the base model is measured already, so no run waits for another"
    assert record(tmp_path, "base")["seed"] is None


def test_interpolation_and_early_stopping_train_nothing_and_say_what_loras_steps_took(stage, tmp_path):
    study = stage(["interpolation", "early-stopping"])
    study.run()
    assert [name for name in study.called() if name.startswith("train")] == ["train-lora-0"]
    assert "lora-0.json" not in [file.name for file in (tmp_path / "results" / "runs").iterdir()]
    assert record(tmp_path, "interpolation-0")["training"]["steps"] == 4
    assert record(tmp_path, "early-stopping-0")["training"] == {
        "steps": 2, "cpu_seconds": 4.0, "cpu_per_step": 2.0, "peak_mb": 9,
    }  # fmt: skip
    assert record(tmp_path, "early-stopping-0")["log"] == {"nll": [1.0] * 2}


def test_a_seeds_dialogues_are_made_once_and_counted(stage, tmp_path):
    study = stage(["lora", "sasft", "sasft-half", "anchors"], jobs=2)
    assert study.run() == {}
    assert study.called().count("dialogues-0") == 1
    assert record(tmp_path, "sasft-0")["training"]["dialogues_cpu_seconds"] == 100.0
    assert record(tmp_path, "sasft-half-0")["training"]["dialogues_cpu_seconds"] == 50.0
    assert "dialogues_cpu_seconds" not in record(tmp_path, "lora-0")["training"]
    data = {name: command[command.index("--data") + 1] for name, command, _ in study.children if "--data" in command}
    runs = tmp_path / "out" / "runs"
    assert data["train-sasft-0"] == str(runs / "sasft-0" / "data.jsonl")
    assert data["train-lora-0"] == str(tmp_path / "out" / "data" / "train-0.jsonl")
    mixes = {name: command for name, command, _ in study.children if name.startswith("mix")}
    assert {name: command[command.index("--ratio") + 1] for name, command in mixes.items()} == {
        "mix-sasft-0": "0.25", "mix-sasft-half-0": "0.142857", "mix-anchors-0": "0.25",
    }  # fmt: skip
    assert ["--anchors" in command for command in mixes.values()].count(True) == 1


def test_a_run_whose_record_is_there_is_not_done_again(stage):
    stage(["lora", "selfaug-0.5"]).run()
    again = stage(["lora", "selfaug-0.5"])
    again.run()
    assert again.called() == ["report"]
    more = stage(["lora", "selfaug-0.5"], seeds=(0, 1))
    more.run()
    assert sorted(set(more.called()) - {"report"}) == [
        "measure-lora-1", "measure-selfaug-0.5-1", "train-lora-1", "train-selfaug-0.5-1",
    ]  # fmt: skip


def test_a_study_that_was_stopped_goes_on_with_the_adapters_that_it_has(stage):
    first = stage(["lora", "selfaug-0.5"])
    first.broken = ("measure-selfaug-0.5-0",)
    assert set(first.run()) == {"measure selfaug-0.5-0"}
    again = stage(["lora", "selfaug-0.5"])
    assert again.run() == {}
    assert again.called() == ["measure-selfaug-0.5-0", "report"]


def test_one_arm_that_fails_leaves_the_others(stage, tmp_path):
    study = stage(["lora", "selfaug-0.5", "all"])
    study.broken = ("train-selfaug-0.5-0",)
    assert set(study.run()) == {"train selfaug-0.5-0", "measure selfaug-0.5-0"}
    assert record(tmp_path, "all-0")["arm"] == "all"


def test_a_report_that_fails_does_not_hide_why_runs_failed(stage):
    study = stage(["lora", "selfaug-0.5"])
    study.broken = ("measure-selfaug-0.5-0", "report")
    assert set(study.run()) == {"measure selfaug-0.5-0", "report"}


def test_without_a_record_there_is_no_report(stage):
    study = stage(["lora"])
    study.broken = ("train-lora-0",)
    assert set(study.run()) == {"train lora-0", "measure lora-0"}
    assert "report" not in study.called()


@pytest.mark.parametrize("broken", ["train-lora-0", "measure-lora-0"])
def test_a_first_run_that_fails_leaves_the_base_to_the_next(stage, tmp_path, broken):
    study = stage(["lora", "selfaug-0.5", "all"])
    study.broken = (broken,)
    assert "measure lora-0" in study.run()
    assert study.bases == ["selfaug-0.5-0"]
    assert record(tmp_path, "base")["arm"] == "base"
    assert record(tmp_path, "all-0")["arm"] == "all"


def own(tmp_path, prompt="q"):
    files = tmp_path / "own-train.jsonl", tmp_path / "own-test.jsonl"
    for file, name in zip(files, (prompt, "t")):
        rows = [json.dumps({"prompt": f"{name}{n}", "answer": "a"}) for n in range(6)]
        file.write_text("\n".join(rows), encoding="utf-8")
    return files


@pytest.fixture
def model(tmp_path):
    put(tmp_path / "tiny" / "config.json", {})
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"1")
    return tmp_path / "tiny"


@pytest.mark.parametrize("changed", ["nothing", "data", "weights", "script", "runtime", "versions"])
def test_an_adapter_that_was_trained_on_something_else_is_trained_again(stage, tmp_path, model, monkeypatch, changed):
    """With the same --output, and the same command."""
    (tmp_path / "checkout" / "Code").mkdir(parents=True)
    runtime, script = tmp_path / "checkout" / "Code" / "loss.py", tmp_path / "train_lora.py"
    for file in (runtime, script, tmp_path / "checkout" / "requirements.txt"):
        file.write_text("1")
    monkeypatch.setattr("study.CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr("study.TRAIN_SCRIPT", script)
    given = {"arms": ["lora", "selfaug-0.5"], "model": str(model)}
    assert stage(**given, task=own(tmp_path)).run() == {}
    files = {"weights": model / "model.safetensors", "script": script, "runtime": runtime}
    if changed in files:
        files[changed].write_text("2")
    if changed == "versions":
        (tmp_path / "out" / "steps.json").write_text("{}")
        monkeypatch.setattr(Stage, "versions_found", '{"torch": "2.14.0"}')
    again = stage(**given, results="others", task=own(tmp_path, "p" if changed == "data" else "q"))
    assert again.run() == {}
    trained = [name for name in again.called() if name.startswith("train")]
    assert trained == {
        "nothing": [], "runtime": ["train-selfaug-0.5-0"],
    }.get(changed, ["train-lora-0", "train-selfaug-0.5-0"])  # fmt: skip


def test_runs_of_other_weights_under_the_same_name_are_not_put_side_by_side(stage, model):
    stage(["lora"], model=str(model)).run()
    (model / "model.safetensors").write_bytes(b"2")
    with pytest.raises(StepFailed, match="model 'tiny "):
        stage(["lora", "all"], model=str(model)).run()


def test_the_base_models_figures_are_those_of_the_last_measurement(stage, tmp_path):
    stage(["lora"]).run()
    stage(["selfaug-0.5"], results="others").run()
    assert json.loads((tmp_path / "out" / "base.json").read_text())["of"] == "selfaug-0.5-0"


def test_a_folder_that_is_not_of_the_study_is_left_alone(stage, tmp_path):
    mine = tmp_path / "out" / "test.jsonl"
    put(mine, "mine")
    with pytest.raises(StepFailed, match=r"no steps\.json"):
        stage(["lora"]).run()
    assert [file.name for file in mine.parent.iterdir()] == ["test.jsonl"]
    assert json.loads(mine.read_text()) == "mine"


def test_a_test_set_in_the_folder_of_the_studys_data_is_refused(stage, tmp_path):
    put(tmp_path / "out" / "steps.json", {})
    train, test = own(tmp_path)
    inside = tmp_path / "out" / "data" / "test.jsonl"
    inside.parent.mkdir()
    test.rename(inside)
    before = inside.read_bytes()
    with pytest.raises(StepFailed, match="where the study writes its data"):
        stage(["lora"], task=(train, inside))
    assert inside.read_bytes() == before


def test_the_longest_sample_is_given_to_the_training_and_the_number_of_them_to_the_runner(stage):
    study = stage(["lora", "sasft"], setting=Setting(train=6, test=5, general=2, dialogues=2, max_length=4096))
    study.run()
    command = next(command for name, command, _ in study.children if name == "train-lora-0")
    assert command[command.index("--max-length") + 1] == "4096"
    assert command[command.index("--samples") + 1] == "6"


def test_another_setting_is_refused_before_anything_runs(stage):
    stage(["lora"]).run()
    other = stage(["lora"], setting=Setting(train=8, test=5, general=2, dialogues=2))
    with pytest.raises(StepFailed, match="train 6, now 8"):
        other.run()
    assert other.called() == []
