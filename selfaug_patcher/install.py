"""`install`: check everything, then patch both files and put the runtime beside transformers."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from .check import check_import
from .environment import Environment
from .errors import PatcherError, leaving
from .families import targets
from .outcome import Outcome, without_lock
from .pairs import warnings
from .payload import Runtime, installed, packages
from .pins import PinTable
from .plan import Plan, beside, bytecode, not_writable
from .receipt import Original, Receipt, encode
from .refusals import lost_original, refusals
from .state import PATCHED, STOCK, State, TargetState, inspect, look_again
from .store import RUNTIME, Store, content_of, digest
from .transaction import DONE, execute, locked


def install(environment: Environment, table: PinTable, runtime: Runtime, *, dry_run: bool = False) -> Outcome:
    """Patch this environment, or say that it is patched already.

    Raises:
        PatcherError: a refusal, or a failure; in both cases the environment is as it was.
    """
    state = inspect(environment, table, runtime)
    stores = state.stores()

    def changed() -> bool:
        return inspect(environment, table, runtime) != state

    early = without_lock(lambda: plan(state), changed, environment, stores, dry_run)
    if early is not None and (dry_run or not early.operations):
        return Outcome("install", state, early)
    with contextlib.ExitStack() as afterwards:
        with locked(stores) as found:
            state = inspect(environment, table, runtime)
            planned = plan(state)
            if planned.operations:
                execute("install", planned.operations, planned.keep, lambda: _check(environment, planned))
                afterwards.enter_context(leaving(DONE["install"]))
        return Outcome("install", look_again(environment, table, runtime, DONE["install"]), planned, found)


def plan(state: State) -> Plan:
    """What `install` has to do here; no operations if all is in place.

    Raises:
        PatcherError: naming every reason why it must not.
    """
    problems = refusals(state)
    if problems:
        raise PatcherError(*problems, *not_writable(state.folders(), state.environment.commands))
    result = Plan(notes=notes(state))
    present = [target for target in state.targets if target.path is not None]
    stock = {target.target.name: _stock(target, state) for target in present}
    result.stock = {t.target.module: (str(t.path), content_of(stock[t.target.name])) for t in present}
    found = installed(state.model.store.site)
    if found and found != state.runtime.hashes():
        # By way of stock: at no moment does a patched file import a runtime that is half one and half another version.
        for target in present:
            if target.state == PATCHED:
                result.put(target.store, target.target.path, stock[target.target.name], like=target.path)
    _put_runtime(result, state)
    receipts: dict[Store, dict[str, Original]] = {}
    for target in reversed(present):  # transformers last: it is what calls the rest
        original = _put_patched(result, target, state.table, stock[target.target.name])
        receipts.setdefault(target.store, {})[target.target.name] = original
    for store, originals in receipts.items():
        receipt = _merged(store, Receipt(state.runtime.version, originals, {}))
        if store == state.model.store:
            receipt = replace(receipt, runtime=state.runtime.hashes())
        result.put(store, ".selfaug/receipt.json", encode(receipt), like=state.model.path)
    problems = result.not_writable(state.environment.commands)
    if problems:
        raise PatcherError(*problems)
    return result


def _merged(store: Store, receipt: Receipt) -> Receipt:
    """With what the site directory's receipt says of packages and of a runtime there that are another environment's."""
    before = store.receipt()
    if before is None:
        return receipt
    others = {target.name for target in targets() if target.name not in receipt.targets and store.has(target.package)}
    kept = {name: original for name, original in before.targets.items() if name in others}
    return replace(receipt, targets={**kept, **receipt.targets}, runtime=before.runtime)


def _check(environment: Environment, planned: Plan) -> None:
    note = check_import(environment, planned.stock)
    planned.notes += [note] if note else []


def _put_runtime(result: Plan, state: State) -> None:
    store = state.model.store
    found = installed(store.site)
    modules = state.runtime.files
    for folder in [RUNTIME, *(f"{RUNTIME}/{package}" for package in packages(modules))]:
        result.make_folder(store, folder)
    before = len(result.operations)
    for name, content in modules.items():
        result.put(store, f"{RUNTIME}/{name}", content, like=state.model.path)
    for name in found:
        if name not in modules:
            result.put(store, f"{RUNTIME}/{name}", None)
    for package in packages(found):
        if package not in packages(modules):
            result.remove_folder(store, f"{RUNTIME}/{package}")
    if len(result.operations) > before:
        result.changes.append(("update" if found else "add", store.site / RUNTIME))


def _put_patched(result: Plan, target: TargetState, table: PinTable, stock: bytes | Path) -> Original:
    """Plan the patched file; returns what the receipt has to say about it."""
    assert target.path is not None
    store, path = target.store, target.target.path
    stock_content = content_of(stock)
    content = target.patched_content(table, stock_content)
    kept = target.original.bytecode if target.original and target.state == PATCHED else {}
    if target.state == STOCK:
        kept = bytecode(store, path)
        result.keep += [(store, path), *((store, beside(path, name)) for name in kept)]
    if digest(content) != target.sha256:
        result.changes.append(("patch", target.path))
    if result.put(store, path, content, like=target.path):  # else it is that of the patched file
        result.remove_bytecode(store, path)
    return Original(target.package.version, digest(stock_content), digest(content), kept)


def _stock(target: TargetState, state: State) -> bytes | Path:
    content = target.content if target.state == STOCK else target.stock_content(state.table)
    if content is None:
        raise PatcherError(lost_original(target, state.environment.commands))
    return content


def notes(state: State) -> list[str]:
    """What is worth knowing about this environment, though it is no reason to refuse."""
    found = []
    for target in state.targets:
        package, pin = target.package, target.pin
        if package.site is None and target is not state.model:
            found.append(f"{package.name} is not installed: SelfAug stays idle until it is (then run install again).")
        elif pin is not None and state.table.by_version(target.target.name, package.version) is None:
            found.append(f"{package.name} {package.version} is not pinned; its file is the one of {pin.version}.")
        for copy in package.copies[1:]:
            found.append(f"Another {package.name} in {copy} is hidden by the one in {package.site}, and is left alone.")
    transformers, peft = (target.package.version for target in state.targets)
    return found + (warnings(transformers, peft, state.environment.commands.installer) if transformers and peft else [])
