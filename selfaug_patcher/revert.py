"""`revert`: stock files back, byte for byte, and everything that `install` added gone."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from .difference import explain, unified
from .environment import Environment, Package
from .errors import MODIFIED as EXIT_MODIFIED
from .errors import USAGE, PatcherError, Problem, from_os_error
from .families import targets as known_targets
from .payload import Runtime, installed, subfolders
from .pins import PinTable
from .plan import Outcome, Plan, carry_out, restore_stock
from .receipt import MODULE, encode
from .refusals import lost_original
from .state import PATCHED, State, TargetState, inspect, of_package
from .store import RUNTIME, Store, read


def revert(
    environment: Environment,
    table: PinTable,
    runtime: Runtime,
    *,
    dry_run: bool = False,
    keep_edits: Path | None = None,
) -> Outcome:
    """Take SelfAug out of this environment, or say that it is not there.

    Files that pip has replaced since `install` are left alone: they are stock, and newer than the kept originals. Files
    that someone edited since are refused, unless ``keep_edits`` names a folder to save them in first.

    Raises:
        PatcherError: a refusal, or a failure; in both cases the environment is as it was.
    """
    stores = [store for store in sites(environment) if store.exists or _is_patched(environment, store, table)]

    def make(state: State) -> Plan:
        return plan(environment, stores, table, runtime, keep_edits)

    def before(state: State, planned: Plan) -> Plan:
        if planned.operations and keep_edits is not None:
            planned.notes += _save(keep_edits, edited(environment, stores, table, runtime))
        return planned

    look = functools.partial(inspect, environment, table, runtime)
    return carry_out("revert", look, make, stores, dry_run=dry_run, before=before)


def sites(environment: Environment) -> list[Store]:
    """The site directories to revert: those of the two packages, and those where only SelfAug is left of them.

    A site directory whose copy of the packages is hidden by another copy is left out: it belongs to another
    environment.
    """
    imported = {package.site for package in environment.packages.values() if package.site}
    stores = []
    for site in environment.path:
        store = Store(site)
        left_over = not any(store.has(target.package) for target in known_targets())
        if site in imported or (store.exists and left_over):
            stores.append(store)
    return stores + [Store(site) for site in sorted(imported - set(environment.path))]


def plan(
    environment: Environment, stores: list[Store], table: PinTable, runtime: Runtime, keep_edits: Path | None
) -> Plan:
    """What `revert` has to do; no operations if SelfAug is not there.

    Raises:
        PatcherError: naming every file that was edited, and every folder that cannot be written to.
    """
    result = Plan()
    problems = []
    edits = edited(environment, stores, table, runtime)
    if keep_edits is None:
        problems += [_edited(path, how, environment) for path, _, how in edits]
    elif edits:
        problems += [_inside(keep_edits, store) for store in stores if _lies_in(keep_edits, store.site)]
    runtime_edited = {path for path, _, _ in edits}
    for store in stores:
        for target in _targets(environment, store, table):
            if target.state == PATCHED or target.edited_after_install():
                stock = target.stock_content(table)
                if stock is None:
                    problems.append(lost_original(target, environment.commands))
                else:
                    assert target.path is not None
                    restore_stock(result, target, stock, like=target.path)
                    result.changes.append(("restore", target.path))
            elif target.original is not None:
                result.notes.append(_already_stock(target))
    for store in stores:
        rest = _others(environment, store)
        if not hidden(environment, store, "transformers"):
            _remove_runtime(result, store, runtime, runtime_edited)
        if rest is not None:
            result.stays = True
            result.notes.append(f"SelfAug stays in {store.site}, for packages there that are not imported from here.")
        result.put(store, ".selfaug/receipt.json", rest)
    problems += result.not_writable(environment.commands)
    if problems:
        raise PatcherError(*problems)
    return result


def edited(
    environment: Environment, stores: list[Store], table: PinTable, runtime: Runtime
) -> list[tuple[Path, bytes, str]]:
    """Files of SelfAug's that someone changed after `install`: path, content, and how it differs, in words."""
    edits = []
    for store in stores:
        for target in _targets(environment, store, table):
            if target.edited_after_install():
                assert target.path is not None
                edits.append((target.path, target.content, explain(target, table)))
        receipt = store.receipt()
        ours = {} if receipt is None or hidden(environment, store, "transformers") else receipt.runtime
        current = runtime.hashes()
        for name, sha256 in installed(store.site).items() if ours else ():
            if ours.get(name) != sha256 and current.get(name) != sha256 and MODULE.fullmatch(name):
                path = store.site / RUNTIME / name
                content = read(path)
                if content is not None:
                    theirs = f"{path}\n" + unified(runtime.files.get(name, b""), content, f"{RUNTIME}/{name}")
                    edits.append((path, content, theirs.rstrip()))
    return edits


def _targets(environment: Environment, store: Store, table: PinTable) -> list[TargetState]:
    receipt = store.receipt()
    packages = {}
    for name, package in environment.packages.items():
        if package.site == store.site:
            packages[name] = package
        elif store.exists and not hidden(environment, store, name):
            packages[name] = replace(Package(name), site=store.site)
    known = (target for target in known_targets() if target.package in packages)
    return [of_package(target, packages[target.package], table, receipt) for target in known]


def hidden(environment: Environment, store: Store, package: str) -> bool:
    """Whether the site directory has a copy of this package while another copy is imported. What SelfAug did to a
    hidden copy belongs to another environment."""
    return store.has(package) and environment.packages[package].site not in (None, store.site)


def _others(environment: Environment, store: Store) -> bytes | None:
    """The receipt of the hidden copies, which stays; None if there are none."""
    receipt = store.receipt()
    if receipt is None:
        return None
    names = {target.name for target in known_targets() if hidden(environment, store, target.package)}
    targets = {name: original for name, original in receipt.targets.items() if name in names}
    modules = receipt.runtime if hidden(environment, store, "transformers") else {}
    return encode(replace(receipt, targets=targets, runtime=modules)) if targets or modules else None


def _is_patched(environment: Environment, store: Store, table: PinTable) -> bool:
    return any(target.state == PATCHED for target in _targets(environment, store, table))


def _remove_runtime(result: Plan, store: Store, runtime: Runtime, edits: set[Path]) -> None:
    receipt = store.receipt()
    ours = {} if receipt is None else receipt.runtime
    current = runtime.hashes()
    present, folder = installed(store.site), store.site / RUNTIME
    names = [
        name
        for name, sha256 in present.items()
        if sha256 in (ours.get(name), current.get(name)) or folder / name in edits
    ]
    if not names and not ours:
        return
    for name in {**ours, **dict.fromkeys(names)}:
        store.place(f"{RUNTIME}/{name}")  # nothing is removed where a link leads
    for name in names:
        result.put(store, f"{RUNTIME}/{name}", None)
    for package in subfolders(store.site):
        result.remove_folder(store, f"{RUNTIME}/{package}")
    result.remove_folder(store, RUNTIME)
    result.changes.append(("remove", folder))
    result.notes += [f"{folder / name} is not SelfAug's, and stays." for name in present if name not in names]


def _already_stock(target: TargetState) -> str:
    package, original = target.package, target.original
    assert original is not None
    if target.path is None or not target.content:
        return f"{target.target.package} is not there any more: nothing to restore."
    if package.version and package.version != original.version:
        return (
            f"{package.name} was {original.version} at install and is {package.version} now: its file is left as it is."
        )
    return f"{package.name} was reinstalled since: its file is left as it is ({target.state})."


def _edited(path: Path, how: str, environment: Environment) -> Problem:
    return Problem(
        id="modified-file",
        what="a file was changed by someone else after SelfAug patched it",
        expected="the file as SelfAug left it",
        found=how,
        do=f"{environment.commands.patcher('revert', '--keep-edits DIR')} (saves the file in DIR, then restores stock)",
        exit_code=EXIT_MODIFIED,
    )


def _lies_in(folder: Path, site: Path) -> bool:
    return site.resolve() in (folder.resolve(), *folder.resolve().parents)


def _inside(folder: Path, store: Store) -> Problem:
    """What is saved among the packages could be what `revert` then replaces or removes."""
    return Problem(
        id="folder-among-packages",
        what="the folder of --keep-edits lies among the packages that are reverted",
        expected=f"a folder outside of {store.site}",
        found=str(folder.resolve()),
        do="another folder for --keep-edits",
        exit_code=USAGE,
    )


def _save(folder: Path, edits: list[tuple[Path, bytes, str]]) -> list[str]:
    saved = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content, _ in edits:
            number, target = 0, folder / path.name
            while target.is_symlink() or (target.exists() and target.read_bytes() != content):
                number += 1
                target = folder / f"{path.stem}.{number}{path.suffix}"
            target.write_bytes(content)
            saved.append(f"{path} was saved as {target}.")
    except OSError as error:
        raise PatcherError(from_os_error(error, f"save the edited files in {folder}")) from None
    return saved
