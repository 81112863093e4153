"""`run`: a script with the patches applied in memory, in its process and in those that it starts. Nothing is written.

The rules are those of `install`: the same pins, hashes, trial and refusals. Child processes come to it through
``PYTHONPATH``, which gets the folder ``inherit``, and so does another interpreter (``--python``): the
``sitecustomize.py`` in there leaves ``sys.path`` as it would be without, has the patched modules served once they are
wanted, and runs the user's own ``sitecustomize``. A child that ignores ``PYTHONPATH`` (``python -I``) is out of reach.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from . import json_text, memory, payload, pins, probe, proof
from .environment import Environment, asked_about, discover, from_probe
from .errors import USAGE, PatcherError, Problem
from .payload import Runtime
from .pins import PinTable
from .plan import Patch, patch, texts
from .proof import Report
from .refusals import choose, refusals
from .state import PINNED, PROVED_HERE, STOCK, UNPINNED, State, TargetState, inspect
from .store import RUNTIME, digest

INHERIT = str(Path(__file__).resolve().with_name("inherit"))

# What the script and its child processes are told: the families, what was proved in the process that runs them, and
# the trust in each file.
TOLD = "_SELFAUG_RUN"
NOTHING_RUN = "Nothing was run, and nothing was changed."


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide ``[--python P] ... SCRIPT|-m MODULE ARGS...`` into the patcher's own options and the rest."""
    index = 0
    while index < len(arguments) and arguments[index].startswith("-") and arguments[index] != "-m":
        index += 2 if arguments[index] in ("--python", "--families") else 1
    return list(arguments[:index]), list(arguments[index:])


def prepare(
    command: Sequence[str],
    table: PinTable,
    modules: Runtime,
    names: Sequence[str] = (),
    *,
    pinned_only: bool = False,
    report: Report = lambda line: None,
) -> Callable[[], None]:
    """Make this process ready for a script, or with ``-m`` for a module; gives what runs it, as Python itself would.

    Args:
        names, pinned_only, report: as for `install.install`.

    Raises:
        PatcherError: a refusal; nothing was run.
    """
    if not command or (command[0] == "-m" and len(command) < 2):
        raise _usage("nothing to run", "a script, or -m and a module", " ".join(command), "name it after `run`")
    as_module = command[0] == "-m"
    target, arguments = (command[1], command[2:]) if as_module else (command[0], command[1:])
    if not as_module and not Path(target).is_file():
        raise _usage("there is no such script", "a file", target, f"name it as seen from {os.getcwd()}")
    # as Python itself, which follows links to the script and its folders
    folder = os.getcwd() if as_module else os.path.dirname(os.path.realpath(target))
    if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:
        sys.path[0] = folder
    elif sys.path[:1] == [getattr(sys.modules.get("__main__"), "ADDED", None)]:  # `python -P` puts no folder there
        del sys.path[0]
    serve(table, modules, names, pinned_only=pinned_only, report=report)
    try:
        exists = not as_module or _exists(target)
    except BaseException as error:  # of a package that the module is in: the user's code, as the module itself
        return functools.partial(_raise, error)
    if not exists:
        do = f"check its name, and that it is installed for {sys.executable}"
        raise _usage("there is no such module to run", "what `python -m` runs", target, do)
    os.environ["PYTHONPATH"] = _inherited()
    sys.argv = [target, *arguments]
    return functools.partial(_run_module if as_module else _run_script, target)


def elsewhere(python: str, command: Sequence[str], options: Sequence[str] = ()) -> Callable[[], None]:
    """What goes on in another interpreter, and does not return.

    Raises:
        PatcherError: there is no such interpreter, or it is too old.
    """
    discover(python)
    call = [python, "-m", "selfaug_patcher", "run", *options, *command]
    return lambda: os.execvpe(python, call, {**os.environ, "PYTHONPATH": _inherited()})


def serve(
    table: PinTable,
    modules: Runtime,
    names: Sequence[str] = (),
    *,
    pinned_only: bool = False,
    in_child: bool = False,
    report: Report = lambda line: None,
) -> State:
    """Serve the patched modules in this process, and from here on in its children.

    Args:
        in_child: take the word of the process that runs this one for what is not pinned, and try nothing.

    Raises:
        PatcherError: one of the targets is unsupported, modified or missing, or does not stand the trial.
    """
    state = inspect(_this_process(), table, modules)
    choice = choose(state, names, in_memory=True, pinned_only=pinned_only)
    problems = choice.problems + [_older(t, state.environment) for t in choice.targets if t.older]
    if problems:
        raise PatcherError(*problems, state=NOTHING_RUN)
    patches = [patch(target, state) for target in choice.targets if target.state in (STOCK, UNPINNED)]
    _prove(state, patches, in_child, report)
    families = [target.target.family for target in choice.targets if target.target.is_model]
    trust = {each.target.target.name: PINNED if each.pinned else PROVED_HERE for each in patches}
    os.environ[TOLD] = json.dumps({"families": families, "proved": _proof(state, patches), "trust": trust})
    runtime = {} if state.runtime_state == "installed" else {RUNTIME: str(modules.root)}
    memory.install(texts(patches, "patched"), runtime)
    return state


def serve_child() -> None:
    """`serve`, in a process that was started by one which does, unless it is itself a `run`; without transformers there
    is nothing to serve."""
    if getattr(sys, "orig_argv", [])[1:4] == ["-m", "selfaug_patcher", "run"]:
        return
    environment = _this_process()
    if environment.packages["transformers"].site is not None:
        serve(pins.load(), payload.load(), _told().get("families", ()), in_child=True)


def _prove(state: State, patches: Sequence[Patch], in_child: bool, report: Report) -> None:
    """Try what is not pinned."""
    unproved, told = proof.needed(state, patches), _told()
    if not unproved or told.get("proved") == _proof(state, patches):
        return
    if told or in_child:
        problems = refusals(state, [each.target for each in unproved], in_memory=True, pinned_only=True)
        raise PatcherError(*problems, state=NOTHING_RUN)
    try:
        checks = proof.prove(state, patches, proof.models_to_try(state, patches), report)
    except PatcherError as error:
        raise PatcherError(*error.problems, state=NOTHING_RUN) from None
    names = ", ".join(f"{each.target.package.name} {each.target.package.version}" for each in unproved)
    print(f"SelfAug: not pinned, proved here, {len(checks)} checks: {names}", file=sys.stderr, flush=True)


def _proof(state: State, patches: Sequence[Patch]) -> str:
    """What stands for these files with these versions."""
    files = {each.target.target.name: each.target.sha256 for each in patches}
    return digest(json.dumps([files, state.environment.versions()], sort_keys=True).encode())


def _told() -> dict[str, Any]:
    """What the process that runs this one has told it; nothing where none does."""
    try:
        told = json_text.parse(os.environ.get(TOLD, "{}"))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _inherited() -> str:
    """``PYTHONPATH`` for the processes that are started from here: the user's, behind the folder ``inherit``."""
    before = os.environ.get("PYTHONPATH")
    entries = before.split(os.pathsep) if before else []  # an empty entry is the working directory
    return os.pathsep.join([INHERIT, *(entry for entry in entries if entry != INHERIT)])


def _this_process() -> Environment:
    return from_probe(probe.answer(asked_about()), sys.executable)  # type: ignore[no-untyped-call]


def _exists(module: str) -> bool:
    """Whether ``-m`` would find something to run. Imports the packages that the module is in, as ``-m`` does."""
    if module.startswith("."):
        return False
    try:
        spec = importlib.util.find_spec(module)
        is_package = spec is not None and spec.submodule_search_locations is not None
        return importlib.util.find_spec(f"{module}.__main__") is not None if is_package else spec is not None
    except (ModuleNotFoundError, ValueError) as error:
        if getattr(error, "name", None) in (None, *_parents(module)):
            return False
        raise


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _raise(error: BaseException) -> None:
    raise error


def _run_module(name: str) -> None:
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run_script(path: str) -> None:
    main = ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __cached__=None)
    sys.modules["__main__"] = main
    content = Path(path).read_bytes()
    exec(compile(content, path, "exec", dont_inherit=True), main.__dict__)


def _usage(what: str, expected: str, seen: str, do: str) -> PatcherError:
    return PatcherError(Problem("usage", what, expected, seen or "nothing", do, exit_code=USAGE))


def _older(target: TargetState, environment: Environment) -> Problem:
    what = f"{target.package.name} is patched by an older SelfAug"
    do = f"{environment.commands.patcher('install')} (or revert), then the same command again"
    return Problem("older-selfaug", what, "stock, or patched by this one", str(target.path), do)
