"""`install`: check everything, then patch the files and put the runtime beside transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import families, proof
from .check import check_import
from .environment import Environment
from .errors import PatcherError
from .pairs import warnings
from .payload import Runtime, installed, packages
from .pins import PinTable
from .plan import Outcome, Patch, Plan, beside, bytecode, carry_out, not_writable, patch
from .receipt import Original, Receipt, encode
from .refusals import choose, runtime_refusals
from .state import PATCHED, STOCK, UNPINNED, State, TargetState, inspect, stores
from .store import RUNTIME, Store, digest


def install(
    environment: Environment,
    table: PinTable,
    runtime: Runtime,
    names: Sequence[str] = (),
    *,
    pinned_only: bool = False,
    dry_run: bool = False,
    report: proof.Report = lambda line: None,
) -> Outcome:
    """Patch this environment, or say that it is patched already.

    Args:
        names: of the model families; `ALL`; or empty, for the default one. Those that are patched already stay so.
        pinned_only: refuse a release that is not pinned, without a trial.
        report: told how far the trial is.

    Raises:
        PatcherError: a refusal, or a failure; in both cases the environment is as it was.
    """

    def look() -> State:
        return inspect(environment, table, runtime)

    def make(state: State) -> Plan:
        return plan(state, names, pinned_only=pinned_only)

    def before(state: State, planned: Plan) -> Plan:
        return _proved(planned, state, names, report)

    sites = stores(look().in_use())
    outcome = carry_out("install", look, make, sites, dry_run=dry_run, before=before, check=_check)
    if dry_run:
        outcome.plan.notes += [
            f"{each.family} is not pinned: install tries it first, in memory, and refuses it if a check does not hold."
            for each in proof.needed(outcome.state, outcome.plan.patches)
        ]
    return outcome


def plan(state: State, names: Sequence[str] = (), *, without: Sequence[str] = (), pinned_only: bool = False) -> Plan:
    """What `install` has to do here; no operations if all is in place.

    Args:
        without: families that did not stand the trial, and are left out.

    Raises:
        PatcherError: naming every reason why it must not.
    """
    choice = choose(state, names, pinned_only=pinned_only)
    chosen = [target for target in choice.targets if target.target.family not in without]
    problems = [*choice.problems, *runtime_refusals(state)]
    if problems:
        raise PatcherError(*problems, *not_writable(_folders(chosen), state.environment.commands))
    result = Plan(notes=notes(state), optional=choice.optional)
    result.notes += [f"{name} is left out: {p.what}; found: {p.found}" for name, p in choice.left_out.items()]
    result.patches = [patch(target, state) for target in chosen if target.path is not None]
    for target in chosen:
        result.read(target)
    runtime = installed(state.store.site)
    if runtime and runtime != state.runtime.hashes():
        # By way of stock: at no moment does a patched file import a runtime that is half one and half another version.
        for each in result.patches:
            if each.target.state == PATCHED:
                result.put(each.target.store, each.target.target.path, each.kept, like=each.target.path)
    like = next(each.target.path for each in result.patches if each.is_model)
    _put_runtime(result, state, like)
    receipts: dict[Store, dict[str, Original]] = {}
    # transformers last: it is what calls the rest
    for each in sorted(result.patches, key=lambda each: each.is_model):
        original = _put_patched(result, each, state.environment)
        receipts.setdefault(each.target.store, {})[each.target.target.name] = original
    for store, originals in receipts.items():
        receipt = _merged(state, store, Receipt(state.runtime.version, originals, {}))
        if store == state.store:
            receipt = replace(receipt, runtime=state.runtime.hashes())
        result.put(store, ".selfaug/receipt.json", encode(receipt), like=like)
    problems = result.not_writable(state.environment.commands)
    if problems:
        raise PatcherError(*problems)
    return result


def _proved(planned: Plan, state: State, names: Sequence[str], report: proof.Report) -> Plan:
    """The plan, where the trial of all that is not pinned holds; without the families that fail and nobody named."""
    models = proof.models_to_try(state, planned.patches)
    optional = [each for each in models if each.family in planned.optional]
    told: list[str] = []
    failed: dict[str, PatcherError] = {}

    def prove(group: list[Patch]) -> None:
        checks = proof.prove(state, planned.patches, group, report)
        told.append(f"{', '.join(each.family for each in group)}: not pinned, proved here, {len(checks)} checks.")

    if len(optional) < len(models):
        prove([each for each in models if each not in optional])
    for each in optional:
        try:
            prove([each])
        except PatcherError as error:
            failed[each.family] = error
    if failed and len(failed) + 1 == len(planned.patches):  # no model is left beside peft's layer
        raise PatcherError(*(problem for error in failed.values() for problem in error.problems))
    result = plan(state, names, without=list(failed)) if failed else planned
    result.notes += told + [f"{family} is left out: {error.problems[0].what}" for family, error in failed.items()]
    return result


def _folders(chosen: Sequence[TargetState]) -> list[Path]:
    """The folders that hold something to change."""
    return [f for t in chosen if t.path and t.package.site for f in (t.package.site, t.path.parent)]


def _merged(state: State, store: Store, receipt: Receipt) -> Receipt:
    """With what the site directory's receipt says of packages and of a runtime there that are another environment's."""
    before = store.receipt()
    if before is None:
        return receipt
    sites = {name: package.site for name, package in state.environment.packages.items()}
    others = {t.name for t in families.targets() if sites[t.package] != store.site and store.has(t.package)}
    kept = {name: original for name, original in before.targets.items() if name in others}
    return replace(receipt, targets={**kept, **receipt.targets}, runtime=before.runtime)


def _check(state: State, planned: Plan) -> None:
    note = check_import(state.environment, planned.patches, state.table)
    planned.notes += [note] if note else []


def _put_runtime(result: Plan, state: State, like: Path | None) -> None:
    store = state.store
    present = installed(store.site)
    modules = state.runtime.files
    for folder in [RUNTIME, *(f"{RUNTIME}/{package}" for package in packages(modules))]:
        result.make_folder(store, folder)
    before = len(result.operations)
    for name, content in modules.items():
        result.put(store, f"{RUNTIME}/{name}", content, like=like)
    for name in present:
        if name not in modules:
            result.put(store, f"{RUNTIME}/{name}", None)
    for package in packages(present):
        if package not in packages(modules):
            result.remove_folder(store, f"{RUNTIME}/{package}")
    if len(result.operations) > before:
        result.changes.append(("update" if present else "add", store.site / RUNTIME))


def _put_patched(result: Plan, each: Patch, environment: Environment) -> Original:
    """Plan the patched file; returns what the receipt has to say about it."""
    target = each.target
    assert target.path is not None
    store, path = target.store, target.target.path
    kept = target.original.bytecode if target.original and target.state == PATCHED else {}
    if target.state in (STOCK, UNPINNED):
        kept = bytecode(store, path)
        result.keep += [(store, path), *((store, beside(path, name)) for name in kept)]
    if digest(each.patched) != target.sha256:
        result.changes.append(("patch", target.path))
    if result.put(store, path, each.patched, like=target.path):  # else it is that of the patched file
        result.remove_bytecode(store, path)
    proved = {} if each.pinned else environment.versions()
    return Original(target.package.version, digest(each.stock), digest(each.patched), kept, proved)


def notes(state: State) -> list[str]:
    """What is worth knowing about this environment, though it is no reason to refuse."""
    lines = []
    for target in state.in_use():
        package, pin = target.package, target.pin
        if package.site is None and not target.target.is_model:
            lines.append(f"{package.name} is not installed: SelfAug stays idle until it is (then run install again).")
        elif pin is not None and state.table.by_version(target.target.name, package.version) is None:
            lines.append(f"{package.name} {package.version} is not pinned; its file is the one of {pin.version}.")
    for package in state.environment.packages.values():
        for copy in package.copies[1:]:
            lines.append(f"Another {package.name} in {copy} is hidden by the one in {package.site}, and is left alone.")
    versions = state.environment.versions()
    transformers, peft = versions["transformers"], versions["peft"]
    return lines + (warnings(transformers, peft, state.environment.commands.installer) if transformers and peft else [])
