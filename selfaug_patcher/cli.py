"""The command line: arguments in, text or JSON out. Everything else is elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import checkpoint, difference, install, payload, pins, revert, run, status, verdict, verify
from .environment import Environment, discover
from .errors import DONE, FAILED, USAGE, PatcherError, Problem, from_os_error, leaving, state_of
from .families import targets
from .payload import Runtime
from .pins import PinTable
from .plan import Outcome
from .refusals import ALL, all_refusals
from .state import PATCHED, STOCK, UNPINNED, State, inspect

_EXIT_CODES = "exit codes: 0 done, 1 failed, 2 usage, 3 unsupported release, 4 modified file, 5 not writable"


def main(arguments: Sequence[str] | None = None, patches: Path | None = None, code: Path | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        arguments: as on the command line, without the program's name.
        patches: where the pins and patches are; default: the installed ones, or the checkout's.
        code: where the runtime is; default: likewise.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed (`>&-`): what is said goes nowhere, and no file gets its number
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    streams = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr) if hasattr(stream, "reconfigure")]
    for stream, _ in streams:  # a path that the terminal cannot show must not be an error
        stream.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    own, command = run.split(arguments[1:]) if arguments[:1] == ["run"] else (arguments[1:], [])
    try:
        options = _parser().parse_args([*arguments[:1], *own])
    except BrokenPipeError:
        return _read_enough()
    except OSError as error:  # --version prints at once
        return _print_error(PatcherError(from_os_error(error, "print")), argparse.Namespace(json=False))
    options.command = command
    try:
        options.table, options.runtime = (lambda: pins.load(patches)), (lambda: payload.load(code))
        result = options.call(options, lambda: (discover(options.python), options.table(), options.runtime()))
        if not callable(result):
            sys.stdout.flush()  # what cannot be written is an error of this command, and not of Python's end
    except PatcherError as error:
        return _print_error(error, options)
    except BrokenPipeError:
        return _read_enough()
    except KeyboardInterrupt as error:
        problem = Problem("interrupted", "the command was interrupted (Ctrl-C)", do="run the same command again")
        return _print_error(PatcherError(problem, state=state_of(error)), options)
    except OSError as error:
        problem = from_os_error(error, f"finish {options.verb}")
        return _print_error(PatcherError(problem, state=state_of(error)), options)
    if callable(result):  # the user's script: whatever ends it, Ctrl-C included, is not for the handlers above
        for stream, errors in streams:
            stream.reconfigure(errors=errors)
        result()
        return DONE
    return int(result)


Setup = Callable[[], "tuple[Environment, PinTable, Runtime]"]


def _install(options: argparse.Namespace, setup: Setup) -> int:
    names, notes = _names(options, [*options.names, *options.model]), []
    environment, table, runtime = setup()
    if options.model:
        named = [checkpoint.family_of(environment, name) for name in options.model]
        names = list(dict.fromkeys([*options.names, *(target.family for target, _ in named)]))
        notes = [note for _, note in named if note]
    with _progress() as report:
        outcome = install.install(
            environment,
            table,
            runtime,
            names,
            pinned_only=options.pinned_only,
            dry_run=options.dry_run,
            report=report,
        )
    outcome.plan.notes.extend(notes)
    return _print_outcome(outcome, options)


def _revert(options: argparse.Namespace, setup: Setup) -> int:
    outcome = revert.revert(*setup(), dry_run=options.dry_run, keep_edits=options.keep_edits)
    return _print_outcome(outcome, options)


def _status(options: argparse.Namespace, setup: Setup) -> int:
    environment, table, runtime = setup()
    state, notes = status.status(environment, table, runtime)
    if options.model is not None:
        answer = verdict.verdict(environment, state, options.model)
        data = {"model": verdict.as_json(answer), **status.as_json(state, notes), "exit_code": answer.exit_code}
        _print(options, verdict.as_text(answer), data)
        return answer.exit_code
    code = status.exit_code(state)
    _print(options, status.as_text(state, notes), {**status.as_json(state, notes), "exit_code": code})
    return code


def _verify(options: argparse.Namespace, setup: Setup) -> int:
    with _progress() as report:
        state, checks = verify.verify(*setup(), report)
    ok = all(check.ok for check in checks)
    code = DONE if ok else status.exit_code(state) or FAILED
    lines = [str(check) for check in checks]
    works = all(check.ok or check.name == verify.VARIABLES for check in checks)
    lines.append("SelfAug works here." if works else "SelfAug does not work here as it should.")
    if works and not ok:
        lines.append("But a variable is wrong, and no training can begin with it.")
    if not ok and not any(check.do for check in checks):
        lines.append(f"  do:       {state.environment.commands.patcher('revert')} (restores the stock packages)")
    data = {"ok": ok, "checks": [vars(check) for check in checks], **status.as_json(state, []), "exit_code": code}
    _print(options, "\n".join(lines), data)
    return code


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """On a terminal, one line that names the check made last; elsewhere, one line that says what takes so long."""
    on_terminal = sys.stderr.isatty()
    count = 0

    def report(name: str) -> None:
        nonlocal count
        count += 1
        if on_terminal:
            print(f"\r\x1b[Ktrial, {count} checks: {name[:60]}", end="", file=sys.stderr, flush=True)
        elif count == 1:
            print("trial of SelfAug with these packages: some 20 seconds", file=sys.stderr, flush=True)

    try:
        yield report
    finally:
        if on_terminal and count:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _diff(options: argparse.Namespace, setup: Setup) -> int:
    state = inspect(*setup())
    problems = all_refusals(state)
    if problems:
        raise PatcherError(*problems)
    text = _diff_text(state)
    _print(options, text.rstrip("\n"), {"diff": text, "exit_code": DONE})
    return DONE


def _run(options: argparse.Namespace, setup: Setup) -> Callable[[], None]:
    if options.python is not None:
        flags = [("--json", options.json), ("--all", options.all), ("--pinned-only", options.pinned_only)]
        own = [flag for flag, on in flags if on]
        own += ["--families", options.families] if options.families else []
        return run.elsewhere(options.python, options.command, own)
    names = _names(options, [name for name in (options.families or "").split(",") if name])
    with _progress() as report:
        return run.prepare(
            options.command, options.table(), options.runtime(), names, pinned_only=options.pinned_only, report=report
        )


def _names(options: argparse.Namespace, names: Sequence[str]) -> Sequence[str]:
    """The families that a command is about."""
    if options.all and names:
        raise PatcherError(
            Problem("usage", "families are named, and --all", "one of the two", " ".join(names), "leave one out", USAGE)
        )
    return ALL if options.all else names


def _pins(options: argparse.Namespace, setup: Setup) -> int:
    return pins.print_table(options.json)


def _pin(options: argparse.Namespace, setup: Setup) -> int:
    try:
        from .maintain import pin
    except ImportError as error:
        do = "clone SelfAug's repository, and run the command there"
        problem = Problem("no-checkout", "releases are pinned in a checkout", "the maintainers' tools", str(error), do)
        raise PatcherError(problem) from None
    return pin.main(options.package, options.version, wheel=options.wheel, yanked=options.yanked, as_json=options.json)


def _diff_text(state: State) -> str:
    """What `install` would change, or has changed."""
    texts = []
    for target in state.in_use():
        path = target.target.path
        if target.state in (STOCK, UNPINNED):
            texts.append(difference.unified(target.content, target.patched_content(state.table, target.content), path))
        elif target.state == PATCHED:
            stock = target.stock_content(state.table)
            content = stock.read_bytes() if isinstance(stock, Path) else stock or b""
            texts.append(difference.unified(content, target.content, path))
    return "".join(texts)


def _print_outcome(outcome: Outcome, options: argparse.Namespace) -> int:
    plan, state = outcome.plan, outcome.state
    changed = bool(plan.operations) and not options.dry_run
    notes = outcome.recovered + plan.notes
    data = {
        "verb": outcome.verb,
        "changed": changed,
        "dry_run": options.dry_run,
        "changes": [{"action": action, "path": str(path)} for action, path in plan.changes],
        **status.as_json(state, notes),
        "exit_code": DONE,
    }
    lines = list(outcome.recovered)
    would = "would " if options.dry_run else ""
    lines += [f"{would + action:<14}{path}" for action, path in plan.changes]
    lines += [f"note: {note}" for note in plan.notes]
    if options.dry_run and outcome.verb == "install":
        data["diff"] = _diff_text(state)
        lines += ["", data["diff"].rstrip("\n"), ""]
    closing = _closing(outcome, options)
    with leaving(closing):
        _print(options, "\n".join([*lines, closing]), data)
    return DONE


def _closing(outcome: Outcome, options: argparse.Namespace) -> str:
    patched = outcome.verb == "install"
    if not outcome.plan.operations:
        return "SelfAug is installed already: nothing to do." if patched else "SelfAug is not installed: nothing to do."
    if options.dry_run:
        return "Nothing was changed (dry run)."
    version = outcome.state.runtime.version
    if patched:
        names = ", ".join(each.target.family for each in outcome.state.models if each.state == PATCHED)
        done = f"SelfAug {version} is installed for {names}."
        return f"{done} Processes that run already keep the old code until they are restarted."
    if outcome.plan.stays:
        return "SelfAug is gone from what this environment imports, and what it had changed there is as it was."
    return "SelfAug is gone, and what it had changed is as it was."


def _read_enough() -> int:
    """Whoever reads has closed the pipe (``| head``)."""
    _drop_answer()
    return FAILED


def _drop_answer() -> None:
    """Nothing more can go where the answer goes, nor what is left of it, which Python would write at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(options: argparse.Namespace, text: str, data: dict[str, Any]) -> None:
    print(json.dumps(data, indent=2) if options.json else text)


def _print_error(error: PatcherError, options: argparse.Namespace) -> int:
    as_json = options.json
    try:
        if as_json:
            print(json.dumps(error.as_json(), indent=2))
        sys.stdout.flush()
    except OSError:  # a full disk
        _drop_answer()
        as_json = False
    if not as_json:
        print(error, file=sys.stderr)
    return error.exit_code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--python", metavar="PATH", help="the interpreter whose environment is meant (default: this one)"
    )
    common.add_argument("--json", action="store_true", help="print one JSON object")
    writing = argparse.ArgumentParser(add_help=False)
    writing.add_argument("--dry-run", action="store_true", help="say what would be done, and change nothing")
    parser = argparse.ArgumentParser(prog="python -m selfaug_patcher", description=_package_doc(), epilog=_EXIT_CODES)
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version of SelfAug")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(
        name: str, call: Callable[..., int | Callable[[], None]], text: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text, parents=[common, *parents], epilog=_EXIT_CODES)
        added.set_defaults(call=call)
        return added

    trusting = argparse.ArgumentParser(add_help=False)
    trusting.add_argument("--all", action="store_true", help="every model family whose file can be patched")
    trusting.add_argument("--pinned-only", action="store_true", help="refuse a release that is not pinned; try nothing")
    installing = verb(
        "install", _install, "patch transformers and peft, and install the runtime beside them", writing, trusting
    )
    installing.add_argument("names", nargs="*", metavar="FAMILY", help="model families (default: qwen2)")
    of_model = "the family of this model: a folder, or a name in the cache or on the hub; may be given again"
    installing.add_argument("--model", action="append", default=[], metavar="NAME", help=of_model)
    taken_out = verb("revert", _revert, "restore the stock files and remove all that install added", writing)
    taken_out.add_argument("--keep-edits", type=Path, metavar="DIR", help="save files edited since install in DIR")
    asking = verb("status", _status, "say what is patched, and what to do next")
    asking.add_argument("--model", metavar="NAME", help="whether SelfAug acts on this model: a folder, or a name")
    verb("verify", _verify, "check hashes, and try SelfAug on tiny models against stock (20 seconds)")
    verb("diff", _diff, "print the diff that install would make, or has made")
    run_text = "run a script with the patches in memory, here and in child processes; write nothing"
    running = verb("run", _run, run_text, trusting)
    running.usage = "%(prog)s [--python PATH] [--families F,G | --all] ... SCRIPT|-m MODULE ARGUMENTS..."
    running.add_argument("--families", metavar="F,G", help="model families (default: qwen2)")
    verb("pins", _pins, "print the table of pinned releases")
    pinning = verb("pin", _pin, "for maintainers, in a checkout: pin one more release")
    pinning.add_argument("package", choices=sorted({target.package for target in targets()}))
    pinning.add_argument("version", help="of the release, as on the index")
    pinning.add_argument("--wheel", type=Path, metavar="FILE", help="its wheel (default: fetched through pip)")
    pinning.add_argument("--yanked", action="store_true", help="mark the release, pinned already or not, as withdrawn")
    return parser


class _Version(argparse.Action):
    """Reads the runtime only where its version is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        try:
            print(f"SelfAug {payload.load().version}", flush=True)
        except PatcherError as error:
            parser.exit(error.exit_code, f"{error}\n")
        parser.exit()


def _package_doc() -> str:
    from . import __doc__ as text

    return text or ""
