"""The bench of test_faults.py: one environment, put into a state, faulted, recovered and compared, many times over.

A program of its own, since it forks for each fault, and forking pytest with all that is loaded there takes long.
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import faults
from snapshots import snapshot

from selfaug_patcher import environment, families, payload, pins
from selfaug_patcher.errors import PatcherError
from selfaug_patcher.install import install
from selfaug_patcher.revert import revert
from selfaug_patcher.status import status

ERRORS = ("short", errno.ENOSPC, errno.EACCES, errno.EIO)
SCENARIOS = {
    "install": ("stock", "install", {"stock", "0.1.0"}),
    "revert": ("patched", "revert", {"stock", "0.1.0"}),
    "upgrade": ("patched", "upgrade", {"stock", "0.1.0", "0.2.0"}),
    "recovery of install": ("crashed-install", "recover", {"stock", "0.1.0"}),
    "recovery of revert": ("crashed-revert", "recover", {"stock", "0.1.0"}),
}


class Bench:
    """One environment that is put back to a chosen state again and again, in this process."""

    def __init__(self, python: str, site: str, old: list[str], new: list[str], names: list[str]):
        self.site, self.names = Path(site), tuple(names)
        # The import of each state is checked below, in a fork: quicker than an interpreter for each fault.
        self.environment = replace(environment.discover(python), python=shutil.which("true"))
        self.table, self.runtime = pins.load(Path(old[0])), payload.load(Path(old[1]))
        self.new_table, self.new_runtime = pins.load(Path(new[0])), payload.load(Path(new[1]))
        present = [target for target in families.MODELS if (self.site / target.path).exists()]
        self.models = [(target.module, target.class_name) for target in present]
        self.stock = snapshot(self.site)
        self.saved = {}  # snapshots of the saved states
        self.now = ""  # the saved state that the environment is in
        self.checked = set()  # what was found, and what was done then
        self.seldom = 10 if names else 1

    def install(self):
        install(self.environment, self.table, self.runtime, self.names)

    def upgrade(self):
        install(self.environment, self.new_table, self.new_runtime, self.names)

    def revert(self):
        revert(self.environment, self.table, self.runtime)

    def recover(self):
        status(self.environment, self.table, self.runtime)

    def save(self, name):
        target = self.site.parent / name
        shutil.rmtree(target, ignore_errors=True)
        _copy(self.site, target)
        self.saved[name] = snapshot(self.site)

    def restore(self, name):
        if self.now != name:
            shutil.rmtree(self.site)
            _copy(self.site.parent / name, self.site)
        self.now = ""

    def look(self) -> dict:
        """The environment as it is now, and a note of which saved state that is."""
        found = snapshot(self.site)
        self.now = next((name for name, state in self.saved.items() if state == found), "")
        return found

    def seen(self, action: str | int, found: dict) -> bool:
        """Whether this was done before with an environment of the same files; the times of new ones are no matter."""
        files = (each for state in (self.stock, *self.saved.values()) for each in state.values() if len(each) == 3)
        times = {time for _, time, _ in files}
        same = {name: each for name, each in found.items() if len(each) < 3 or each[1] in times}
        same |= {name: (each[0], each[2]) for name, each in found.items() if name not in same}
        key = action, hashlib.sha256(repr(sorted(same.items())).encode()).digest()
        known = key in self.checked
        self.checked.add(key)
        return known

    def imports(self) -> set[str]:
        """What the models do when imported: ``stock``, ``0.1.0`` or ``0.2.0``; raises if one of them is a mix."""
        reader, writer = os.pipe()

        def look():
            for name in [n for n in sys.modules if n.split(".")[0] in ("transformers", "peft", "selfaug")]:
                del sys.modules[name]
            sys.meta_path[:] = [BuiltinImporter, FrozenImporter, PathFinder]
            sys.path.insert(0, str(self.site))
            sys.dont_write_bytecode = True
            sys.path_importer_cache.clear()
            from peft.tuners.lora.layer import LoraLayer

            releases = set()
            for module, name in self.models:
                model = getattr(importlib.import_module(module), name)
                release = getattr(model, "release", "stock")
                parts = {getattr(model, "step", "stock"), getattr(model, "part", "stock")}
                assert parts == {release}, "a runtime of two versions"
                assert release == "stock" or hasattr(LoraLayer, "selfaug_reference"), "transformers alone is patched"
                releases.add(release)
            os.write(writer, " ".join(releases).encode())

        assert faults.forked(look) == 0, "the packages do not import"
        os.close(writer)
        with os.fdopen(reader) as file:
            return set(file.read().split())


def _copy(source, target):
    """Copy a tree, hard links included: the originals are links to nothing else, but the times must stay."""
    shutil.copytree(source, target, symlinks=True)


def run(bench: Bench, name: str, kinds: tuple, reads: bool, step: int, every_kind: bool, lasting: bool) -> int:
    start, verb, allowed = SCENARIOS[name]
    prepare(bench, start)
    action = getattr(bench, verb)
    bench.restore(start)
    points = faults.count(bench.site, action, reads)
    assert points > 15
    tried = 0
    for at in range(1, points + 1, step):
        for what in kinds if every_kind else (kinds[at % len(kinds)],):
            bench.restore(start)
            code = faults.with_fault(bench.site, lambda: attempt(action), at, what, lasting, reads)
            where = f"{name}: {what} at operation {at} of {points}"
            assert code in (-9, 0, faults.REFUSED), where
            check(bench, where, allowed, at)
            tried += 1
    return tried


def attempt(action) -> int:
    try:
        action()
    except PatcherError:
        return faults.REFUSED
    return 0


def check(bench, where, allowed, at):
    """Everything that must hold after a fault. What an earlier fault left in the same way was checked then."""
    often = at % bench.seldom == 0  # with many files, mostly `status`: the others begin with the same recovery
    number = at // bench.seldom % 3 if often else 0
    if bench.seen(number, found := bench.look()):
        return
    if not bench.seen("import", {name: each for name, each in found.items() if not name.startswith(".selfaug")}):
        assert bench.imports() <= allowed, where
    (bench.recover, bench.install, bench.revert)[number]()
    assert not (bench.site / ".selfaug" / "journal.json").exists(), where
    assert not (bench.site / ".selfaug" / "stage").exists(), where
    assert not (bench.site / ".selfaug" / "lock").exists(), where
    if not bench.seen("revert", bench.look()):
        revert(bench.environment, bench.new_table, bench.new_runtime)
        assert bench.look() == bench.stock, where


def prepare(bench, start):
    bench.save("stock")
    if start == "stock":
        return
    bench.install()
    bench.save("patched")
    if start.startswith("crashed"):
        verb = start.split("-")[1]
        base = "stock" if verb == "install" else "patched"
        bench.restore(base)
        at = 5 + faults.count(
            bench.site, getattr(bench, verb)
        )  # the last operation before the journal is gone that leaves one behind
        while True:
            bench.restore(base)
            faults.with_fault(bench.site, getattr(bench, verb), at, "kill")
            if (bench.site / ".selfaug" / "journal.json").exists():
                break
            at -= 1
        bench.save(start)


CALLS = "write fsync link rename unlink mkdir rmdir chmod chown utimensat flock ftruncate".split()
COMMAND = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path; from selfaug_patcher.cli import main
verb, python, patches, code, *names = sys.argv[2:]
sys.exit(main([verb, *names, "--python", python], Path(patches), Path(code)))
"""


def run_calls(bench: Bench, order: dict) -> int:
    """The same with the real system calls of a real command, failed and killed by strace."""
    start, verb, allowed = SCENARIOS[order["scenario"]]
    prepare(bench, start)
    patches, code = order["new"] if verb == "upgrade" else order["old"]
    root = str(Path(__file__).resolve().parents[2])
    real = "install" if verb == "upgrade" else verb
    command = [real, order["python"], patches, code, *(order["names"] if real == "install" else [])]
    log = str(bench.site.parent / "strace.log")
    tried = 0
    for call in CALLS:
        for action in ("error=EIO", "error=ENOSPC", "signal=KILL"):
            at, hit = 1, True
            while hit:
                bench.restore(start)
                strace = ["strace", "-qq", "-o", log, "-e", f"trace={call}", "-e", f"inject={call}:{action}:when={at}"]
                subprocess.run(
                    [*strace, sys.executable, "-c", COMMAND, root, *command], capture_output=True, check=False
                )
                hit = "INJECTED" in Path(log).read_text() or "killed by SIGKILL" in Path(log).read_text()
                check(bench, f"{order['scenario']}: {call} {at} {action}", allowed, at)
                tried += hit
                at += 1 if order["every kind"] else 4
    return tried


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    kinds = {"kill": ("kill",), "error": ERRORS, "lasting": ERRORS[1:]}.get(order["kind"], ())
    bench = Bench(*(order[name] for name in ("python", "site", "old", "new", "names")))
    every_kind = order["every kind"]
    reads = order["kind"] == "error" or (every_kind and order["kind"] == "kill")
    step = 1 if order["every operation"] or order["kind"] == "kill" else 5  # coprime to the number of kinds
    if order["kind"] == "calls":
        print(run_calls(bench, order))
        sys.exit()
    print(run(bench, order["scenario"], kinds, reads, step, every_kind, lasting=order["kind"] == "lasting"))
