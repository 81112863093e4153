"""Receipts, journals and pin tables that someone tampered with: refused before anything is written."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stand_ins import LAYER, MODEL, Release

from selfaug_patcher import receipt
from selfaug_patcher.errors import PatcherError
from selfaug_patcher.receipt import Original, Receipt
from selfaug_patcher.store import Store, digest
from selfaug_patcher.transaction import recover

HASH = "a" * 64
VERBS = ["install", "revert", "status"] * 5  # in turn: what refuses is the reading, which is the same for all


@pytest.fixture
def patched(place):
    place.done("install")
    return place


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


RECEIPTS = {
    "path in the runtime": lambda data: data["runtime"].update({"../../evil.py": HASH}),
    "absolute path in the runtime": lambda data: data["runtime"].update({"/etc/passwd": HASH}),
    "path out of a package": lambda data: data["runtime"].update({"kit/../../evil.py": HASH}),
    "path in a package": lambda data: data["runtime"].update({"kit/deeper/evil.py": HASH}),
    "bytecode in the runtime": lambda data: data["runtime"].update({"__pycache__/evil.py": HASH}),
    "a package alone": lambda data: data["runtime"].update({"kit/": HASH}),
    "path in the bytecode": lambda data: data["targets"]["peft:lora"]["bytecode"].update({"../x.pyc": HASH}),
    "hash that is a path": lambda data: data["targets"]["peft:lora"].update(stock_sha256="../../../etc/passwd"),
    "another target": lambda data: data["targets"].update(numpy=data["targets"]["peft:lora"]),
    "another key": lambda data: data.update(more=1),
    "no targets": lambda data: data.pop("targets"),
    "a format of the future": lambda data: data.update(format=2),
    "a version that is code": lambda data: data.update(selfaug="$(rm -rf /)"),
    "enormous": lambda data: data.update(selfaug="1" * 400_000),
    "a list": lambda data: data.update(runtime=[]),
}


@pytest.mark.parametrize(("name", "verb"), list(zip(RECEIPTS, VERBS)))
def test_a_receipt_that_was_tampered_with_is_refused(patched, name, verb):
    edit(patched.site / ".selfaug" / "receipt.json", RECEIPTS[name])
    before = patched.snapshot()
    result = patched.run(verb)
    assert (result.code, "error[damaged-receipt]" in result.err) == (1, True), result.err
    assert patched.snapshot() == before


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"{}"])
def test_a_receipt_that_is_no_receipt_is_refused(patched, content):
    (patched.site / ".selfaug" / "receipt.json").write_bytes(content)
    assert "error[damaged-receipt]" in patched.run("revert").err


def test_after_a_damaged_receipt_was_moved_away_revert_works(patched):
    stock = patched.run("diff").code
    (patched.site / ".selfaug" / "receipt.json").write_text("{}")
    shutil.move(patched.site / ".selfaug", patched.root / "away")
    patched.done("revert")
    assert (stock, patched.states()) == (0, ("stock", "stock", "missing"))


@pytest.mark.parametrize("folder", [".selfaug", ".selfaug/originals"])
def test_a_store_that_is_a_link_is_refused(patched, tmp_path, folder):
    shutil.move(patched.site / folder, tmp_path / "elsewhere")
    (patched.site / folder).symlink_to(tmp_path / "elsewhere")
    assert "error[damaged-receipt]" in patched.run("revert").err
    assert (tmp_path / "elsewhere").exists()


ENTRIES = {
    "a path outside": {"kind": "put", "path": "../victim.py", "slot": 0, "old": "", "new": HASH},
    "an absolute path": {"kind": "put", "path": "/tmp/victim.py", "slot": 0, "old": "", "new": HASH},
    "another file of the package": {"kind": "put", "path": "transformers/__init__.py", "slot": 0, "old": "", "new": ""},
    "a climb inside the pattern": {
        "kind": "put",
        "path": "transformers/models/qwen2/__pycache__/../../../__init__.py",
        "slot": 0,
        "old": "",
        "new": "",
    },
    "a folder that is not ours": {"kind": "remove", "path": MODEL, "slot": 0, "old": "", "new": ""},
    "a folder below a package": {"kind": "remove", "path": "selfaug/kit/deeper", "slot": 0, "old": "", "new": ""},
    "a folder out of the runtime": {"kind": "remove", "path": "selfaug/../peft", "slot": 0, "old": "", "new": ""},
    "a folder of bytecode": {"kind": "remove", "path": "selfaug/__pycache__", "slot": 0, "old": "", "new": ""},
    "a folder that is a file": {"kind": "make", "path": "selfaug/kit/part.py", "slot": 0, "old": "", "new": ""},
    "a file that is a folder": {"kind": "put", "path": "selfaug/kit", "slot": 0, "old": HASH, "new": ""},
    "a slot that is a path": {"kind": "put", "path": LAYER, "slot": "../../x", "old": HASH, "new": ""},
    "another kind": {"kind": "run", "path": LAYER, "slot": 0, "old": "", "new": ""},
    "another key": {"kind": "put", "path": LAYER, "slot": 0, "old": "", "new": "", "more": 1},
}


@pytest.mark.parametrize(("name", "verb"), list(zip(ENTRIES, VERBS)))
def test_a_journal_that_was_tampered_with_is_refused(patched, name, verb):
    journal = patched.site / ".selfaug" / "journal.json"
    journal.write_text(json.dumps({"verb": "install", "entries": [ENTRIES[name]]}))
    victim = patched.site.parent / "victim.py"
    victim.write_text("precious")
    before = patched.snapshot()
    result = patched.run(verb)
    assert result.code == 1, result.out
    assert "error[damaged-receipt]" in result.err or "error[outside-package]" in result.err
    assert victim.read_text() == "precious"
    assert patched.snapshot() == before


def test_a_journal_for_a_package_that_leads_elsewhere_is_refused(patched, tmp_path):
    shutil.move(patched.site / "selfaug" / "kit", tmp_path / "elsewhere")
    (patched.site / "selfaug" / "kit").symlink_to(tmp_path / "elsewhere")
    content = (tmp_path / "elsewhere" / "part.py").read_bytes()
    entry = {"kind": "put", "path": "selfaug/kit/part.py", "slot": 0, "old": "", "new": digest(content)}
    journal = patched.site / ".selfaug" / "journal.json"
    journal.write_text(json.dumps({"verb": "install", "entries": [entry]}))
    assert "error[outside-package]" in patched.run("status").err
    assert (tmp_path / "elsewhere" / "part.py").read_bytes() == content


def test_a_journal_whose_files_are_gone_is_no_dead_end(patched):
    sha256 = patched.status()["targets"][0]["sha256"]
    entry = {"kind": "put", "path": MODEL, "slot": 0, "old": HASH, "new": sha256}
    journal = patched.site / ".selfaug" / "journal.json"
    journal.write_text(json.dumps({"verb": "install", "entries": [entry]}))
    assert f"What {patched.model} was before is lost" in patched.run("status").out
    patched.done("revert")
    assert patched.states() == ("stock", "stock", "missing")


def test_a_tampered_original_is_never_restored(patched):
    stock = {patched.model: None, patched.layer: None}
    for path in (patched.site / ".selfaug" / "originals").iterdir():
        path.unlink()
        path.symlink_to("/etc/passwd")
    patched.done("revert")
    for path in stock:
        assert b"root:" not in path.read_bytes()
    assert patched.states() == ("stock", "stock", "missing")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda text: text.replace("CLASS(SelfAligned", "CLASS(Evil"),
        lambda text: text.replace("+# >>>", "+import os  # >>>"),
        lambda text: text.replace(".CONFIGURATION", "os"),
        lambda text: text[: len(text) // 2],
        lambda text: text * 1000,
        lambda text: "",
    ],
    ids=["another base", "another result", "another place", "truncated", "enormous", "empty"],
)
def test_a_seam_that_was_tampered_with_is_refused(place, tmp_path, tamper):
    patches = tmp_path / "patches"
    shutil.copytree(place.selfaug.patches, patches)
    path = patches / "transformers.seam"
    path.write_text(tamper(path.read_text()))
    before = place.snapshot()
    result = place.run("install", selfaug=Release(patches, place.selfaug.code))
    assert result.code == 1
    assert result.err.startswith("error[bad-p")
    assert result.err.endswith("Nothing was changed.\n")
    assert place.snapshot() == before


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
hashes = st.text("0123456789abcdef", min_size=64, max_size=64)
modules = st.from_regex(receipt.MODULE, fullmatch=True)
originals = st.builds(
    Original,
    version=st.from_regex(r"[0-9][0-9a-z.+]{0,8}", fullmatch=True),
    stock_sha256=hashes,
    patched_sha256=hashes,
    bytecode=st.dictionaries(st.from_regex(receipt.BYTECODE, fullmatch=True), hashes, max_size=2),
)


@given(
    st.builds(
        Receipt,
        selfaug=st.just("0.1.0"),
        targets=st.dictionaries(st.sampled_from(["transformers:qwen2", "peft:lora"]), originals),
        runtime=st.dictionaries(modules, hashes, max_size=4),
    )
)
def test_a_receipt_is_read_as_it_was_written(written):
    assert receipt.decode(receipt.encode(written), "receipt.json") == written


@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_make_a_receipt_raise_anything_but_its_own_error(content):
    with contextlib.suppress(PatcherError):
        receipt.decode(content, "receipt.json")


def journal_that_removes(path: str) -> dict[str, object]:
    """Undone, it takes the file away that lies there and has the content of the victim."""
    new = digest(b"precious")
    return {"verb": "install", "entries": [{"kind": "put", "path": path, "slot": 0, "old": "", "new": new}]}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(data=journal_that_removes("../victim"))
@example(data=journal_that_removes("selfaug/../../victim"))
@given(
    st.fixed_dictionaries(
        {
            "verb": st.sampled_from(["install", "revert"]) | json_values,
            "entries": st.lists(
                st.fixed_dictionaries(
                    {
                        "kind": st.sampled_from(["put", "make", "remove"]) | json_values,
                        "path": st.sampled_from(["../victim", MODEL, "selfaug/x.py", "selfaug/../../victim"])
                        | st.sampled_from(["selfaug/kit", "selfaug/kit/x.py", "selfaug/kit/../../../victim"])
                        | st.text(max_size=30)
                        | json_values,
                        "slot": st.integers(0, 3) | json_values,
                        "old": st.just("") | hashes | json_values,
                        "new": st.just("") | hashes | json_values,
                    }
                ),
                max_size=3,
            )
            | json_values,
        }
    )
    | json_values
)
def test_no_journal_reaches_outside_or_raises_anything_but_its_own_error(tmp_path, data):
    site = tmp_path / "site"
    shutil.rmtree(site, ignore_errors=True)
    for folder in (".selfaug", "selfaug"):
        (site / folder).mkdir(parents=True)
    (site / ".selfaug" / "journal.json").write_text(json.dumps(data))
    (tmp_path / "victim").write_text("precious")
    with contextlib.suppress(PatcherError):
        recover([Store(site)])
    assert (tmp_path / "victim").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site", "victim"]
