"""Every command of README.md and docs/ is run: by the program that it names, up to where that has accepted every word.

A program's own main() is started, in a child process, with the words of the page, and stopped once its parser is
through: a flag that was renamed fails here. What README promises first, the three commands, is run to the end.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import multiprocessing
import os
import re
import runpy
import shutil
import subprocess
import sys
import traceback
import venv
from importlib.metadata import entry_points
from pathlib import Path

import pages
import pytest
from pages import ROOT

from selfaug_patcher import families, run

YOUR_OWN = ("your_training_script.py", "train.py")  # in examples: the reader's
IMAGE = {"/opt/SelfAug": "."}  # where the Dockerfile of docs/installing.md puts the checkout

# Commands that the test below does not run: why, and who does: a file, and what it says there.
ELSEWHERE = {
    "python tests/trainers/trl_stack.py": (
        "needs TRL and takes no arguments",
        "noxfile.py",
        "tests/trainers/trl_stack.py",
    ),
    "python tests/distributed/deepspeed_run.py": (
        "needs DeepSpeed and takes no arguments",
        "noxfile.py",
        "tests/distributed/deepspeed_run.py",
    ),
}

# Blocks that say no language and are no commands, by how they begin.
NO_COMMANDS = {
    "docs/design.md": ["loss = NLL + alpha * KL", "Code/  "],
    "docs/installing.md": ['{"error": ', '{"targets": ', "COPY SelfAug "],
    "docs/rebasing.md": ["transformers 5.22.1 has the", "transformers 9.9 is stopped"],
    "docs/reference-model.md": ["SELFAUG_REFERENCE=base  ", "SelfAug cannot take the model"],
    "docs/self-dialogue.md": ["task  "],
    "docs/trainers.md": ["train.py:88: BypassWarning: SelfAug is on"],
}

COMMANDS = [command for page in pages.PAGES for command in pages.commands(page)]


class Accepted(BaseException):
    """A program has read its arguments and would begin its work now."""


@pytest.fixture(scope="module")
def imported():
    """What the children would import one by one."""
    for name in ("torch", "transformers", "peft", "accelerate"):
        pytest.importorskip(name)


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_program_accepts_the_command_as_it_stands(command):
    for name, value in command.variables:
        known_variable(name, value)
    if " ".join(command.words) not in ELSEWHERE:
        only_named = command.prose and len(command.words) == 3 and command.words[1] == "-m"
        words = (*command.words, "…") if only_named else command.words
        accept(words, ROOT / IMAGE.get(command.folder, command.folder))


def accept(words: tuple[str, ...], folder: Path) -> None:
    program, arguments = words[0].rsplit("/", 1)[-1], list(words[1:])
    if program in ("python", "python3"):
        accept_python(arguments, folder)
    elif program == "pip":
        create_command = pytest.importorskip("pip._internal.commands").create_command
        refused = in_child(lambda: create_command(arguments[0]).parse_args(arguments[1:]), folder, ends=True)
        assert not refused, refused
    elif program == "nox":
        sessions, _, given = " ".join(arguments).partition(" -- ")
        assert sessions.split()[0] == "-s"
        assert set(sessions.split()[1:]) <= nox_sessions().keys()
        if given:
            (script,) = nox_sessions()[sessions.split()[1]]
            accept_python([script, *given.split()], folder)
    else:
        entry = next(iter(entry_points(group="console_scripts", name=program)), None)
        if entry is None:
            pytest.skip(f"{program} is not installed here")
        accept_main(lambda: entry.load()(), program, arguments, folder)
        if program == "torchrun":
            accept_python(arguments[arguments.index("-m") :], folder)


def accept_python(arguments: list[str], folder: Path) -> None:
    """``arguments`` as after ``python``: a script or a module, and what it is given."""
    if arguments[0] in YOUR_OWN:
        return
    if arguments[:2] == ["-m", "pytest"]:
        collects(arguments[2:], folder)
    elif arguments[0] == "-m":
        module, given = arguments[1], arguments[2:]
        accept_main(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), module, given, folder)
        if arguments[1:3] == ["selfaug_patcher", "run"]:
            script = run.split(given[1:])[1]
            if script:
                accept_python(script, folder)
    elif arguments[0].startswith("-"):
        subprocess.run([sys.executable, *arguments, "-c", "pass"], check=True)
    else:
        path = folder / arguments[0]

        def start() -> None:
            sys.path.insert(0, str(path.parent))
            runpy.run_path(str(path), run_name="__main__")

        accept_main(start, str(path), arguments[1:], folder)


def accept_main(start, name: str, given: list[str], folder: Path) -> None:
    """The program takes the words; of a command with parts left out, its help names every option."""
    left_out = [number for number, word in enumerate(given) if re.search(r"…|\.\.\.|^\[", word)]
    if not left_out:
        refused = in_child(start, folder, [name, *given])
        assert not refused, refused
        return
    verbs = [word for word in given[: left_out[0]] if re.fullmatch(r"[a-z]+", word)][:1]
    help_text = in_child(start, folder, [name, *verbs, "--help"])
    assert "usage:" in help_text, help_text
    assert set(re.findall(r"--[a-z][a-z-]*", " ".join(given))) <= set(re.findall(r"--[a-z][a-z-]*", help_text))


def in_child(start, folder: Path, argv: list[str] | None = None, ends: bool = False) -> str:
    """Run ``start`` in a fork of this process until it has parsed ``argv``; "" if it did, else what it said instead.

    ``ends``: to come to its end is enough.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_until_accepted, args=(there, start, folder, argv or sys.argv, ends))
    child.start()
    there.close()
    try:
        return here.recv()
    finally:
        child.join()


def _until_accepted(answer, start, folder: Path, argv: list[str], ends: bool) -> None:
    said, parse = io.StringIO(), argparse.ArgumentParser.parse_args

    def stop(parser, *arguments, **options):
        raise Accepted(parse(parser, *arguments, **options))

    argparse.ArgumentParser.parse_args = stop
    os.chdir(folder)
    sys.argv = argv
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            start()
            outcome = "" if ends else "it ended before it read its arguments"
        except Accepted:
            outcome = ""
        except SystemExit:
            outcome = said.getvalue() or "it stopped and said nothing"
        except BaseException:
            outcome = traceback.format_exc()
    answer.send(outcome)
    os._exit(0)


def collects(arguments: list[str], folder: Path) -> None:
    """pytest takes the words and finds tests for them."""
    words = ["--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]

    def start() -> None:
        code = pytest.main(words)
        if code:
            raise RuntimeError(f"pytest: {code!r}")

    refused = in_child(start, folder, ends=True)
    assert not refused, refused


def known_variable(name: str, value: str) -> None:
    from selfaug import config

    if name.startswith("SELFAUG"):
        config.read(None, {name: value})
    elif name != "OMP_NUM_THREADS":  # torch's
        sources = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "Code").rglob("*.py"), ROOT / "noxfile.py"]
        assert any(f'"{name}"' in path.read_text(encoding="utf-8") for path in sources), f"nothing reads {name}"


def nox_sessions() -> dict[str, list[str]]:
    """By the name of each session, the scripts that it hands its arguments to."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.decorator_list:
            name = re.search(r"name='(.*?)'", " ".join(map(ast.unparse, node.decorator_list)))
            text = ast.unparse(node)
            sessions[name[1] if name else node.name] = re.findall(r"'python', '(\S+)', \*session\.posargs", text)
    return sessions


def test_whatever_is_said_to_run_elsewhere_is_on_a_page_and_run_there():
    on_pages = {" ".join(command.words) for command in COMMANDS}
    for command, (_, path, text) in ELSEWHERE.items():
        assert command in on_pages
        assert (ROOT / command.split()[1]).is_file()
        assert text in (ROOT / path).read_text(encoding="utf-8"), f"{path} does not run {command}"


def test_a_block_that_says_no_language_is_commands_or_named_above():
    """So that a program which no test knows cannot hide among the outputs."""
    found, unknown = {name: [] for name in NO_COMMANDS}, []
    for page in pages.PAGES:
        for block in pages.blocks(page):
            if block.language in ("", *pages.SHELLS):
                others = [text for _, text in pages.lines(block) if text.strip() and not pages.is_command(text)]
                others = [text for text in others if text.startswith("$" if block.language == "console" else "")]
                named = [begin for begin in NO_COMMANDS.get(block.page, ()) if others and others[0].startswith(begin)]
                found.setdefault(block.page, []).extend(set(named) - set(found.get(block.page, ())))
                if others and not named:
                    unknown.append(f"{block.page}:{block.line}: {others[0]}")
    assert unknown == [], "say the language of the block, or add the program to pages.PROGRAMS or the block above"
    assert {name: begins for name, begins in found.items() if begins} == NO_COMMANDS


def test_pip_install_of_a_checkout_gives_the_patcher_its_patches_and_its_runtime(tmp_path):
    """The command of README.md, with what keeps it off the network."""
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip", "install", "-q", ".", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", tmp_path], cwd=ROOT, check=True)
    ask = "from selfaug_patcher import payload, pins; print(len(pins.load().pins), len(payload.load().files))"

    def answer(folder: Path) -> str:
        return subprocess.run(
            [sys.executable, "-c", ask], cwd=folder, capture_output=True, text=True, check=True
        ).stdout

    assert answer(tmp_path) == answer(ROOT)


YOUR_SCRIPT = """
import os

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

torch.manual_seed(0)
sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, initializer_range=0.5))
model = get_peft_model(model, LoraConfig(target_modules=["v_proj", "up_proj"], init_lora_weights=False)).train()
tokens = torch.tensor([[1, 2, 3, 4, 5, 6]])
labels = torch.tensor([[-100, -100, -100, 4, 5, 6]])
aligned = model(input_ids=tokens, labels=labels).loss.item()
os.environ["SELFAUG"] = "0"
print(aligned, model(input_ids=tokens, labels=labels).loss.item())
"""


@pytest.fixture
def environment(tmp_path, imported):
    """A virtual environment with transformers and peft of its own, and all else from the one that runs the tests.

    Its files are links to the ones here, as uv makes them; SelfAug puts new files in the place of such.
    """
    venv.EnvBuilder(symlinks=True, with_pip=False).create(tmp_path / "env")
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    for name in ("transformers", "peft"):
        package = Path(sys.modules[name].__file__).parent
        ignore = shutil.ignore_patterns("__pycache__") if os.environ.get("PYTHONDONTWRITEBYTECODE") else None
        for folder in [package, *package.parent.glob(f"{name}-*.dist-info")]:
            shutil.copytree(folder, site / folder.name, copy_function=link, ignore=ignore)
    shared = [str(ROOT), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    (site / "zz-shared.pth").write_text("\n".join(shared))
    return tmp_path / "env"


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def test_the_three_commands_of_the_readme_do_what_it_says(environment, tmp_path):
    (tmp_path / "your_training_script.py").write_text(YOUR_SCRIPT)
    texts = (block.text for block in pages.blocks(ROOT / "README.md"))
    install, train, revert = next(text for text in texts if "\npython your_training_script.py" in text).splitlines()
    files = [
        next(environment.glob(f"lib/python*/site-packages/{target.path}"))
        for target in (families.MODELS[0], families.LAYER)
    ]
    stock = [file.read_bytes() for file in files]

    shell(environment, tmp_path, install)
    assert all(file.read_bytes() != content for file, content in zip(files, stock))
    aligned, plain = map(float, shell(environment, tmp_path, train).split())
    assert aligned > plain
    shell(environment, tmp_path, revert)
    assert [file.read_bytes() for file in files] == stock


def shell(environment: Path, folder: Path, line: str) -> str:
    """Run a line of a page by a shell that has the environment's Python first, as after activating it."""
    variables = {**os.environ, "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(line, shell=True, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
