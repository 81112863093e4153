"""The environment of one interpreter: where an import of transformers and of peft would lead.

The answer comes from a child process of that interpreter (`probe`), never from importing the packages: their own
import may take seconds, may fail, and says nothing about another interpreter.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import json_text
from .errors import USAGE, PatcherError, Problem
from .families import targets

OLDEST = (3, 9)

# "-c" puts the working directory first on the path; a training script has its own folder there instead.
_AS_A_SCRIPT = "import sys; sys.path[:] = [entry for entry in sys.path if entry]"

AGAIN = ("--force-reinstall", "--no-deps")  # in place of what is there, and nothing else with it


@dataclass(frozen=True)
class Commands:
    """Commands for the user to type, complete: with the interpreter that has selfaug_patcher, with the environment that
    is meant, and with the installer of that environment.

    Args:
        python: its interpreter.
        named: whether the user named that with ``--python``; else it is the running one.
        flags: switches of the running interpreter that decide what is imported.
        uv: whether uv filled the environment, which then may have no pip.
    """

    python: str
    named: bool = False
    flags: tuple[str, ...] = ()
    uv: bool = False

    def patcher(self, verb: str, arguments: str = "") -> str:
        """This patcher, for this environment."""
        here = self._here("python") or shlex.quote(sys.executable)
        option = ["--python", shlex.quote(self.python)] if self.named else []
        return " ".join([here, *self.flags, _program(), verb, *option, *filter(None, [arguments])])

    def install(self, requirement: str, *options: str) -> str:
        """Its installer, say with `AGAIN`."""
        return " ".join([self.installer, *options, f'"{requirement}"'])

    @property
    def installer(self) -> str:
        """What stands before a requirement."""
        python = shlex.quote(self.python)
        if self.uv:
            return f"uv pip install --python {python}"
        return "pip install" if not self.named and self._here("pip") else f"{python} -m pip install"

    def _here(self, name: str) -> str:
        """The name of a program, where the shell would find the one of the running interpreter's environment."""
        program = shutil.which(name)
        here = program and os.path.dirname(os.path.abspath(program)) == os.path.dirname(sys.executable)
        return name if here else ""


def _program() -> str:
    """What starts this patcher again, behind the interpreter: its path where it was started by that, since ``-m`` finds
    the package of a checkout from the checkout's root alone."""
    main = sys.modules["__main__"]
    file = os.path.realpath(getattr(main, "__file__", None) or "")
    by_path = not main.__package__ and file == os.path.realpath(os.path.join(os.path.dirname(__file__), "__main__.py"))
    return shlex.quote(sys.argv[0]) if by_path else "-m selfaug_patcher"


@dataclass(frozen=True)
class Package:
    """One package as an import would find it.

    Args:
        name: its import name.
        version: of the distribution that owns it; empty where there is no metadata.
        site: the folder on ``sys.path`` that it lies in; None where it is not installed as a plain folder.
        installer: what the distribution's metadata calls its installer: ``pip``, ``uv``, ``conda``, ...
        record: what the distribution's list of files says of those that SelfAug patches: path to sha256.
        copies: every folder of ``sys.path`` that has this package, the imported one first.
        problems: why this copy must not be patched.
    """

    name: str
    version: str = ""
    site: Path | None = None
    installer: str = ""
    record: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[Path, ...] = ()
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Environment:
    """An interpreter, its ``sys.path`` and its two packages."""

    python: str
    version: tuple[int, int, int]
    path: tuple[Path, ...]
    packages: dict[str, Package]
    commands: Commands
    conda: bool = False
    flags: tuple[str, ...] = ()
    torch: str = ""

    def versions(self) -> dict[str, str]:
        """What a proof depends on: the versions of the packages and of Python; empty texts for what is not there."""
        packages = {name: package.version for name, package in self.packages.items()}
        return {**packages, "torch": self.torch, "python": ".".join(map(str, self.version))}

    def run_code(self, code: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a piece of code in this interpreter (`sys` is imported), with what a training script would import.

        No bytecode is written (-B): nothing may be compiled from files that may yet be taken back.
        """
        return _run(self._command(code), **options)

    def start_code(self, code: str, **options: Any) -> subprocess.Popen[str]:
        """The same, begun: its standard input and output are pipes of text."""
        child: subprocess.Popen[str] = subprocess.Popen(
            self._command(code), stdin=subprocess.PIPE, stdout=subprocess.PIPE, **_as_text(options)
        )
        return child

    def _command(self, code: str) -> list[str]:
        return [self.python, *self.flags, "-B", "-c", f"{_AS_A_SCRIPT}\n{code}"]


def discover(python: str | None = None) -> Environment:
    """Ask ``python`` (default: the running interpreter) what it would import.

    Raises:
        PatcherError: it cannot be run, gives no answer, or is older than Python 3.9.
    """
    named = python is not None
    flags = () if named else _own_flags()
    python = sys.executable if python is None else python
    probe = Path(__file__).with_name("probe.py").read_text(encoding="utf-8")
    try:
        result = _run([python, *flags, "-c", probe, json.dumps(asked_about())], timeout=120)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _no_interpreter(f"cannot run {shlex.quote(python)}", str(error)) from None
    try:
        # The last line only: site customisations of the environment may print above it.
        answer = json_text.parse(result.stdout.strip().splitlines()[-1])
        version = tuple(answer["version"])
    except (IndexError, ValueError, KeyError, TypeError):
        said = (result.stderr.strip() or result.stdout.strip() or f"exit code {result.returncode}")[-400:]
        raise _no_interpreter(f"{shlex.quote(python)} did not say what it would import", said) from None
    if version < OLDEST:
        raise PatcherError(
            Problem(
                id="old-python",
                what="the interpreter is too old for SelfAug",
                expected="Python 3.9 or later",
                found=f"Python {'.'.join(map(str, version))} ({python})",
                do="name another one with --python",
            )
        )
    return from_probe(answer, python, flags, named)


def asked_about() -> dict[str, list[str]]:
    """What the probe is asked about: the files of each package that SelfAug patches."""
    files: dict[str, list[str]] = {}
    for target in targets():
        files.setdefault(target.package, []).append(target.path)
    return files


def from_probe(answer: dict[str, Any], python: str, flags: tuple[str, ...] = (), named: bool = False) -> Environment:
    """The environment that a probe's answer describes."""
    installers = {each["installer"] for package in answer["packages"].values() for each in package["distributions"]}
    commands = Commands(python, named, flags, uv="uv" in installers)
    return Environment(
        python=python,
        version=tuple(answer["version"]),
        path=_distinct(answer["path"]),
        packages={name: _package(name, one, answer, commands) for name, one in answer["packages"].items()},
        commands=commands,
        conda=answer["conda"],
        flags=flags,
        torch=answer["torch"],
    )


def _package(name: str, answered: dict[str, Any], answer: dict[str, Any], commands: Commands) -> Package:
    origin = Path(answered["origin"]) if answered["origin"] else None
    # Stable: of several, one that says its version; a folder that an uninstall left half empty says none.
    distributions = sorted(answered["distributions"], key=lambda distribution: not distribution["version"])
    if origin is None:
        problems: tuple[Problem, ...] = ()
        if answered["namespace"]:
            what = f"{name} is an empty folder, left over from an uninstalled one"
            do = f"remove that folder, or {commands.install(name)}"
            problems = (Problem("leftover-package", what, "a package", ", ".join(answered["namespace"]), do),)
        return Package(name, problems=problems)
    site = origin.parent.parent
    owner = next((d for d in distributions if d["site"] and _same(Path(d["site"]), site)), None)
    editable = next((d for d in distributions if d["editable"]), None)
    source = owner or (distributions[0] if distributions else {})
    package = Package(
        name=name,
        version=source.get("version", ""),
        site=site,
        installer=source.get("installer", ""),
        record=source.get("record", {}),
        copies=_distinct(answered["copies"]),
    )
    return _with_problems(package, origin, answered["loader"], owner, editable, answer, commands)


def _with_problems(
    package: Package,
    origin: Path,
    loader: str,
    owner: dict[str, Any] | None,
    editable: dict[str, Any] | None,
    answer: dict[str, Any],
    commands: Commands,
) -> Package:
    name = package.name
    problems = []
    reinstall = commands.install(f"{name}=={package.version}" if package.version else name, "--force-reinstall")
    if "zip" in loader.lower() or not origin.is_file():
        problems.append(
            Problem("zipped", f"{name} is imported from an archive", "a plain folder", str(origin), reinstall)
        )
        return Package(name, package.version, problems=tuple(problems))
    if owner is None or editable is owner:
        what = f"{name} is an editable install or a source checkout"
        do = f"{reinstall}, or use it from memory: {commands.patcher('run', 'SCRIPT')}"
        problems.append(Problem("editable", what, "an installed release", str(origin.parent), do))
    if answer["externally_managed"] and package.installer not in ("pip", "uv"):
        what = f"{name} belongs to the operating system's package manager"
        do = "make a virtual environment (python -m venv), and install transformers and peft there"
        problems.append(Problem("externally-managed", what, "files that pip or uv installed", str(origin.parent), do))
    return replace(package, problems=tuple(problems))


def _distinct(entries: Iterable[str]) -> tuple[Path, ...]:
    """The folders among these, each under the first of its names: on Fedora an environment's lib64, a link to its lib,
    is on ``sys.path`` beside that."""
    folders: dict[object, Path] = {}
    for entry in entries:
        try:
            information = os.stat(entry)
            folders.setdefault((information.st_dev, information.st_ino), Path(entry))
        except OSError:
            folders.setdefault(entry, Path(entry))
    return tuple(folders.values())


def _no_interpreter(what: str, seen: str) -> PatcherError:
    do = "name the interpreter of the environment that has transformers with --python"
    return PatcherError(Problem("no-interpreter", what, "a Python interpreter", seen, do, exit_code=USAGE))


def _same(left: Path, right: Path) -> bool:
    try:
        return os.path.samefile(left, right)
    except OSError:
        return left == right


def _own_flags() -> tuple[str, ...]:
    """The switches of the running interpreter that decide what is imported."""
    if sys.flags.isolated:
        return ("-I",)
    return tuple(flag for flag, on in (("-E", sys.flags.ignore_environment), ("-s", sys.flags.no_user_site)) if on) + (
        ("-O",) * sys.flags.optimize
    )


def _run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    stdin = options.pop("stdin", subprocess.DEVNULL) if "input" not in options else None
    return subprocess.run(command, stdin=stdin, capture_output=True, check=False, **_as_text(options))


def _as_text(options: dict[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", **options.pop("env", {})}
    return {"encoding": "utf-8", "errors": "replace", "env": environment, **options}
