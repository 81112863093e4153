"""The runtime's packages: folders with modules one level below ``selfaug/``, with all that holds for the rest of it."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest
from stand_ins import make_release
from test_install_and_revert import outcome_of_import

from selfaug_patcher import payload


@pytest.fixture(scope="module")
def flat_selfaug(tmp_path_factory):
    """A SelfAug from before there were packages: what later lies in ``kit`` is a module of that name."""
    release = make_release(tmp_path_factory.mktemp("flat"), "0.0.9", mark="  # 0.0.9")
    shutil.rmtree(release.code / "kit")
    (release.code / "kit.py").write_text('PART = "0.0.9"\n')
    hooks = release.code / "hooks.py"
    hooks.write_text(hooks.read_text().replace(".kit.part", ".kit"))
    return release


def with_bytecode(place) -> None:
    """Compile the runtime, as the import of a user who may write there does."""
    subprocess.run([place.python, "-m", "compileall", "-q", str(place.site / "selfaug")], check=True)


def edit(place) -> None:
    part = place.site / "selfaug" / "kit" / "part.py"
    part.write_text(part.read_text() + "# mine\n")


def test_a_folder_without_init_and_one_further_down_are_not_part_of_the_runtime(selfaug):
    assert [name for name in payload.load(selfaug.code).files if "/" in name] == [
        "kit/__init__.py",
        "kit/__main__.py",
        "kit/part.py",
        "trial/__init__.py",
        "trial/__main__.py",
    ]


def test_this_checkouts_benchmarks_and_examples_are_not_installed():
    names = payload.load().files
    assert not [name for name in names if name.split("/")[0] in ("benchmarks", "examples")]


def test_revert_removes_packages_with_their_bytecode(place):
    before = place.snapshot()
    place.done("install")
    with_bytecode(place)
    assert list((place.site / "selfaug" / "kit" / "__pycache__").iterdir())
    assert place.states() == ("patched", "patched", "installed")
    place.done("revert")
    assert place.snapshot() == before


def test_a_module_of_an_installed_package_runs_with_python_m(place):
    place.done("install")
    result = subprocess.run([place.python, "-m", "selfaug.kit"], capture_output=True, text=True, check=False)
    assert result.stdout == "kit 0.1.0\n", result.stderr


def test_a_flat_selfaug_is_upgraded_to_one_with_packages_and_taken_back(place, flat_selfaug):
    before = place.snapshot()
    place.done("install", selfaug=flat_selfaug)
    with_bytecode(place)
    assert outcome_of_import(place) == "0.0.9 True"
    for release, version in ((place.selfaug, "0.1.0"), (flat_selfaug, "0.0.9"), (place.selfaug, "0.1.0")):
        assert place.states(selfaug=release) == ("patched", "patched", "older")
        place.done("install", selfaug=release)
        assert place.states(selfaug=release) == ("patched", "patched", "installed")
        assert outcome_of_import(place) == f"{version} True"
        runtime = place.site / "selfaug"
        assert ((runtime / "kit.py").exists(), (runtime / "kit").exists()) == (version == "0.0.9", version == "0.1.0")
        with_bytecode(place)
    place.done("revert")
    assert place.snapshot() == before


def test_an_edited_module_in_a_package_is_refused_shown_and_kept(place, tmp_path):
    before = place.snapshot()
    place.done("install")
    edit(place)
    assert place.states()[2] == "modified"
    assert "changed: kit/part.py" in place.run("status").out
    for verb in ("install", "revert"):
        result = place.run(verb)
        assert (result.code, "changed: kit/part.py" in result.err or "+# mine" in result.err) == (4, True), result.err
    place.done("revert", "--keep-edits", str(tmp_path / "kept"))
    assert (tmp_path / "kept" / "part.py").read_text().endswith("# mine\n")
    assert place.snapshot() == before


def test_files_of_one_name_in_two_packages_are_both_kept(place, tmp_path):
    place.done("install")
    for folder in ("", "kit"):
        (place.site / "selfaug" / folder / "__init__.py").write_text(f"# mine {folder}\n")
    place.done("revert", "--keep-edits", str(tmp_path / "kept"))
    kept = {path.name: path.read_text() for path in (tmp_path / "kept").iterdir()}
    assert kept == {"__init__.py": "# mine \n", "__init__.1.py": "# mine kit\n"}


@pytest.mark.parametrize("missing", ["kit/part.py", "kit"])
def test_what_is_gone_from_a_package_is_named_and_revert_still_works(place, missing):
    before = place.snapshot()
    place.done("install")
    path = place.site / "selfaug" / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "missing: kit/part.py" in place.run("status").out
    assert place.run("install").code == 4
    place.done("revert")
    assert place.snapshot() == before


@pytest.mark.parametrize("name", ["notes.txt", "kit/notes.txt", "kit/deeper/module.py", "no-package/module.py"])
def test_what_cannot_be_selfaugs_stays_and_is_named(place, name):
    place.done("install")
    path = place.site / "selfaug" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("mine\n")
    assert place.states()[2] == "modified"
    result = place.done("revert")
    named = place.site / "selfaug" / "/".join(name.split("/")[:2] if name.startswith("kit") else name.split("/")[:1])
    assert f"note: {named} is not SelfAug's, and stays." in result.out
    assert [p for p in (place.site / "selfaug").rglob("*") if p.is_file()] == [path]


@pytest.mark.parametrize("folder", ["selfaug", "selfaug/kit"])
@pytest.mark.parametrize("verb", ["install", "revert"])
def test_a_folder_of_the_runtime_that_leads_elsewhere_is_refused(place, tmp_path, folder, verb):
    place.done("install")
    with_bytecode(place)
    shutil.move(place.site / folder, tmp_path / "elsewhere")
    (place.site / folder).symlink_to(tmp_path / "elsewhere")
    before, elsewhere = place.snapshot(), sorted((tmp_path / "elsewhere").rglob("*"))
    result = place.run(verb)
    if verb == "revert":
        assert (result.code, "error[outside-package]" in result.err) == (1, True), result.out + result.err
        assert f"do:       remove the link in {place.site / 'selfaug'}" in result.err
    else:
        assert (result.code, "error[modified-runtime]" in result.err) == (4, True), result.out + result.err
    assert (place.snapshot(), sorted((tmp_path / "elsewhere").rglob("*"))) == (before, elsewhere)
    os.unlink(place.site / folder)
    place.done("revert")
    assert place.states() == ("stock", "stock", "missing")


def test_bytecode_where_a_link_leads_is_not_removed(place, tmp_path):
    place.done("install")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "part.cpython-311.pyc").write_bytes(b"precious")
    (place.site / "selfaug" / "kit" / "__pycache__").symlink_to(tmp_path / "cache")
    place.done("revert")
    assert (tmp_path / "cache" / "part.cpython-311.pyc").read_bytes() == b"precious"
