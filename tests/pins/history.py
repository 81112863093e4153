"""History, replayed: each pinned release as if nobody had pinned it, with the knowledge that older releases gave.

    python tests/pins/history.py      writes the table of docs/releases.md anew; it needs the wheels in the cache

The checks of sources are the trial's own; no release is imported. What the trial runs needs an environment with the
release, and has no part here.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Callable
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from Code.trial import arguments, lora_layers  # noqa: E402
from selfaug_patcher import families, pins  # noqa: E402
from selfaug_patcher.errors import PatcherError  # noqa: E402
from selfaug_patcher.families import Target  # noqa: E402
from selfaug_patcher.maintain import wheels  # noqa: E402

PAGE = ROOT / "docs" / "releases.md"
BEGIN, END = "<!-- history: begin -->", "<!-- history: end -->"


@dataclass(frozen=True)
class Outcome:
    """What would have become of one release. ``known``: an older release has the very file; ``stopped``: what stopped
    it, empty where nothing did."""

    pin: pins.Pin
    known: bool
    stopped: str


def replay(
    table: pins.PinTable, target: Target, stock: Callable[[pins.Pin], bytes], layers: Callable[[pins.Pin], list[str]]
) -> list[Outcome]:
    """Each release of a file but the first, which there was no older one to learn from. An argument that has stopped a
    release is known from then on.

    Args:
        stock: gives the stock file of a release, and is asked for the first release with each file.
        layers: gives the LoRA layers of a release of peft that do not ask `disable_adapters`.
    """
    files: set[str] = set()
    known: set[str] = set()
    outcomes: list[Outcome] = []
    for pin in table.of(target.name):
        first, new = not outcomes, pin.stock_sha256 not in files
        source = stock(pin) if new else b""
        stopped = no_place(table, target, source) if new else []
        if target == families.LAYER:
            stopped += [f"{layer} does not ask `disable_adapters`" for layer in layers(pin)]
        elif new and not stopped:
            stopped += [] if first else unknown_arguments(target, source, known)
            known |= {name for forward in forwards(target, source) for name in names(forward)}
        outcomes.append(Outcome(pin, not new, "; ".join(stopped)))
        files.add(pin.stock_sha256)
    return outcomes[1:]


def no_place(table: pins.PinTable, target: Target, source: bytes) -> list[str]:
    """Why the seam has no place in this file; empty if it has one."""
    try:
        table.patched(target, source)
    except PatcherError as error:
        return [f"{problem.what}: {problem.found}" for problem in error.problems]
    return []


def unknown_arguments(target: Target, source: bytes, known: set[str]) -> list[str]:
    """What the trial's checks of the arguments say to this file, where the runtime knows no other names."""
    model, decoder = forwards(target, source)
    modules = {"model": type("Decoder", (), {"forward": decoder})()}
    stand_in = type("Model", (), {"forward": model, "base_model_prefix": "model", "_modules": modules})
    with patch.multiple(arguments, PLAIN=known, ADD_TO_LOSS=set(), CACHES=arguments.CACHES & known):
        return [f"{check.name}: {check.found}" for check in arguments.checks(stand_in()) if not check.ok]


def forwards(target: Target, source: bytes) -> tuple[Callable[..., None], Callable[..., None]]:
    """``forward`` of the model and of its decoder: functions with the signatures of the file, and no code of it."""
    return tuple(
        signature(source, name) for name in (target.class_name, target.class_name.replace("ForCausalLM", "Model"))
    )


def signature(source: bytes, class_name: str) -> Callable[..., None]:
    (class_,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == class_name]
    (forward,) = [node for node in class_.body if isinstance(node, ast.FunctionDef) and node.name == "forward"]
    given = forward.args
    for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs):
        argument.annotation = argument.annotation and ast.Constant(ast.unparse(argument.annotation))
    for argument in filter(None, (given.vararg, given.kwarg)):
        argument.annotation = None
    given.defaults = [ast.Constant(None) for _ in given.defaults]
    given.kw_defaults = [default and ast.Constant(None) for default in given.kw_defaults]
    empty = ast.FunctionDef("forward", given, [ast.Pass()], [], None, lineno=1)
    scope: dict[str, Callable[..., None]] = {}
    exec(compile(ast.fix_missing_locations(ast.Module([empty], [])), "signature", "exec"), scope)
    return scope["forward"]


def names(forward: Callable[..., None]) -> set[str]:
    code = forward.__code__
    return set(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]) - {"self"}


def deaf_layers(version: str) -> list[str]:
    """The classes of peft's LoRA package in this wheel that do not ask `disable_adapters`, as the trial names them."""
    wheel = wheels.find("peft", version)
    assert wheel is not None, f"no wheel of peft {version}"
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        inside = [name for name in archive.namelist() if name.startswith("peft/tuners/lora/") and name.endswith(".py")]
        archive.extractall(folder, inside)
        package: ModuleType = SimpleNamespace(__path__=[f"{folder}/peft/tuners/lora"])
        others = {name: module for name, module in sys.modules.items() if name.split(".")[0] != "peft"}
        tuners = SimpleNamespace(lora=package)
        stand_ins = {"peft": SimpleNamespace(tuners=tuners), "peft.tuners": tuners, "peft.tuners.lora": package}
        on_disk = patch.object(sys, "meta_path", [PathFinder])  # no module comes from memory
        with on_disk, patch.dict(sys.modules, {**others, **stand_ins}, clear=True):
            return list(lora_layers._that_do_not_ask())


def from_cache(pin: pins.Pin) -> bytes:
    package = pin.target.split(":")[0]
    path = next(target.path for target in families.targets() if target.name == pin.target)
    return wheels.read(wheels.fetch(package, pin.version), path) or b""


def outcomes(table: pins.PinTable, stock: Callable[[pins.Pin], bytes] = from_cache) -> dict[str, list[Outcome]]:
    """By target, the outcome of each release."""
    return {
        target.name: replay(table, target, stock, lambda pin: deaf_layers(pin.version))
        for target in (families.MODELS[0], families.LAYER)
    }


def text(history: dict[str, list[Outcome]]) -> str:
    """The tables of docs/releases.md."""
    return "\n".join([*counts(history), "", *stops(history), ""])


def counts(history: dict[str, list[Outcome]]) -> Iterator[str]:
    yield "| file | releases after the first | with a known file | with a new file, served | stopped |"
    yield "|---|---:|---:|---:|---:|"
    for target, rows in history.items():
        stopped = [row for row in rows if row.stopped]
        known = [row for row in rows if row.known and not row.stopped]
        new = len(rows) - len(stopped) - len(known)
        yield f"| {target} | {len(rows)} | {len(known)} | {new} | {len(stopped)} |"


def stops(history: dict[str, list[Outcome]]) -> Iterator[str]:
    yield "| stopped | by |"
    yield "|---|---|"
    for target, rows in history.items():
        for row in rows:
            if row.stopped:
                yield f"| {target.split(':')[0]} {row.pin.version} | {row.stopped} |"


def block(page: str) -> str:
    """What the page has between the two marks."""
    return page.split(BEGIN + "\n")[1].split(END)[0]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(words)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN + "\n")
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{text(outcomes(pins.load()))}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
