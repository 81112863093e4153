"""`install`: check everything, then patch the files and put the runtime beside transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import families, proof
from .check import check_import
from .environment import Environment
from .errors import USAGE, PatcherError, Problem, leaving
from .families import LAYER
from .pairs import warnings
from .payload import Runtime, installed, packages
from .pins import PinTable
from .plan import Outcome, Patch, Plan, beside, bytecode, not_writable, without_lock
from .receipt import Original, Receipt, encode
from .refusals import lost_original, refusals, runtime_refusals
from .state import PATCHED, STOCK, UNPINNED, State, TargetState, inspect, look_again, stores
from .store import RUNTIME, Store, content_of, digest
from .transaction import DONE, execute, locked

ALL = ("all",)


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
    state = inspect(environment, table, runtime)

    def changed() -> bool:
        return inspect(environment, table, runtime) != state

    sites = stores(state.in_use())
    early = without_lock(lambda: plan(state, names, pinned_only=pinned_only), changed, environment, sites, dry_run)
    if early is not None and (dry_run or not early.operations):
        early.notes += [
            f"{patch.target.target.family} is not pinned: install tries it first, in memory, and refuses it if a check "
            "does not hold."
            for patch in early.unproved
        ]
        return Outcome("install", state, early)
    with contextlib.ExitStack() as afterwards:
        with locked(sites) as recovered:
            state = inspect(environment, table, runtime)
            planned = _proved(plan(state, names, pinned_only=pinned_only), state, names, report)
            if planned.operations:
                execute("install", planned.operations, planned.keep, lambda: _check(state, planned))
                afterwards.enter_context(leaving(DONE["install"]))
        return Outcome("install", look_again(environment, table, runtime, DONE["install"]), planned, recovered)


def choose(state: State, names: Sequence[str]) -> tuple[list[TargetState], list[TargetState]]:
    """The targets that have to be patched: those of the families that are named (or the default one), those that are
    patched, and peft's; and the other models that are to be patched where nothing speaks against it: of `ALL`, or those
    that pip has replaced since they were patched.

    Raises:
        PatcherError: there is no such family.
    """
    known = [model.target.family for model in state.models]
    everything = tuple(names) == ALL
    unknown = [] if everything else [name for name in names if name not in known]
    if unknown:
        what = f"there is no family {', '.join(unknown)}"
        do = "name one of these, or say --all"
        raise PatcherError(Problem("usage", what, ", ".join(known), ", ".join(unknown), do, exit_code=USAGE))
    named = () if everything else names or known[:1]
    must, may = [], []
    for model in state.models:
        if model.target.family in named or model.state == PATCHED or model.edited_after_install():
            must.append(model)
        elif everything or model.original is not None:
            may.append(model)
    return [*must, state.layer], may


def plan(state: State, names: Sequence[str] = (), *, without: Sequence[str] = (), pinned_only: bool = False) -> Plan:
    """What `install` has to do here; no operations if all is in place.

    Args:
        without: families that did not stand the trial, and are left out.

    Raises:
        PatcherError: naming every reason why it must not.
    """
    must, may = choose(state, names)
    result = Plan(notes=notes(state))
    chosen = list(must)
    problems = [*refusals(state, must, pinned_only=pinned_only), *runtime_refusals(state)]
    reasons: list[Problem] = []
    for model in may:
        against = refusals(state, [model], pinned_only=pinned_only)
        if not against and model.target.family not in without:
            chosen.append(model)
        reasons += against
        result.notes += [f"{model.target.family} is left out: {p.what}; found: {p.found}" for p in against[:1]]
    if len(chosen) == 1:  # peft alone
        problems += [problem for problem in reasons if problem not in problems]
    if problems:
        raise PatcherError(*problems, *not_writable(_folders(chosen), state.environment.commands))
    present = [target for target in chosen if target.path is not None]
    result.patches = [_patch(target, state) for target in present]
    result.may = [model.target.family for model in may]
    unproved = {id(target) for target in proof.needed(state, present)}
    result.unproved = [patch for patch in result.patches if id(patch.target) in unproved and not patch.pinned]
    runtime = installed(state.store.site)
    if runtime and runtime != state.runtime.hashes():
        # By way of stock: at no moment does a patched file import a runtime that is half one and half another version.
        for patch in result.patches:
            if patch.target.state == PATCHED:
                result.put(patch.target.store, patch.target.target.path, patch.kept, like=patch.target.path)
    like = next(patch.target.path for patch in result.patches if patch.target.target != LAYER)
    _put_runtime(result, state, like)
    receipts: dict[Store, dict[str, Original]] = {}
    # transformers last: it is what calls the rest
    for patch in sorted(result.patches, key=lambda patch: patch.target.target != LAYER):
        original = _put_patched(result, patch, state.environment)
        receipts.setdefault(patch.target.store, {})[patch.target.target.name] = original
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
    """The plan, where the trial of all that is not pinned holds; without the families that may be left out and did not
    stand it."""
    unproved = planned.unproved
    models = [patch for patch in unproved if patch.target.target != LAYER] or planned.models if unproved else []
    optional = [patch for patch in models if patch.target.target.family in planned.may]
    failed: dict[str, PatcherError] = {}
    for patch in optional:
        try:
            _try([patch], planned, state, report)
        except PatcherError as error:
            failed[patch.target.target.family] = error
    rest = [patch for patch in models if patch not in optional]
    if rest:
        _try(rest, planned, state, report)
    if not failed:
        return planned
    if len(failed) == len(planned.models):
        raise PatcherError(*(problem for error in failed.values() for problem in error.problems))
    again = plan(state, names, without=list(failed))
    again.notes += [f"{family} is left out: {error.problems[0].what}" for family, error in failed.items()]
    return again


def _try(patches: Sequence[Patch], planned: Plan, state: State, report: proof.Report) -> None:
    patched = {patch.target.target.module: (str(patch.target.path), patch.patched) for patch in planned.patches}
    stock = {patch.target.target.module: (str(patch.target.path), patch.stock) for patch in planned.patches}
    checks = proof.prove(state, [patch.target for patch in patches], patched, stock, report)
    names = ", ".join(patch.target.target.family for patch in patches)
    planned.notes.append(f"{names}: not pinned, proved here, {len(checks)} checks.")


def _patch(target: TargetState, state: State) -> Patch:
    kept = target.content if target.state in (STOCK, UNPINNED) else target.stock_content(state.table)
    if kept is None:
        raise PatcherError(lost_original(target, state.environment.commands))
    stock = content_of(kept)
    pinned = state.table.by_stock(target.target.name, digest(stock)) is not None
    return Patch(target, kept, stock, target.patched_content(state.table, stock), pinned)


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


def _put_patched(result: Plan, patch: Patch, environment: Environment) -> Original:
    """Plan the patched file; returns what the receipt has to say about it."""
    target = patch.target
    assert target.path is not None
    store, path = target.store, target.target.path
    kept = target.original.bytecode if target.original and target.state == PATCHED else {}
    if target.state in (STOCK, UNPINNED):
        kept = bytecode(store, path)
        result.keep += [(store, path), *((store, beside(path, name)) for name in kept)]
    if digest(patch.patched) != target.sha256:
        result.changes.append(("patch", target.path))
    if result.put(store, path, patch.patched, like=target.path):  # else it is that of the patched file
        result.remove_bytecode(store, path)
    proved = {} if patch.pinned else environment.versions()
    return Original(target.package.version, digest(patch.stock), digest(patch.patched), kept, proved)


def notes(state: State) -> list[str]:
    """What is worth knowing about this environment, though it is no reason to refuse."""
    lines = []
    for target in state.in_use():
        package, pin = target.package, target.pin
        if package.site is None and target.target == LAYER:
            lines.append(f"{package.name} is not installed: SelfAug stays idle until it is (then run install again).")
        elif pin is not None and state.table.by_version(target.target.name, package.version) is None:
            lines.append(f"{package.name} {package.version} is not pinned; its file is the one of {pin.version}.")
    for package in state.environment.packages.values():
        for copy in package.copies[1:]:
            lines.append(f"Another {package.name} in {copy} is hidden by the one in {package.site}, and is left alone.")
    versions = state.environment.versions()
    transformers, peft = versions["transformers"], versions["peft"]
    return lines + (warnings(transformers, peft, state.environment.commands.installer) if transformers and peft else [])
