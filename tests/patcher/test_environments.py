"""Environments as installers and people leave them: links, two site directories, hidden copies, bytecode, odd paths."""

from __future__ import annotations

import os
import py_compile
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from snapshots import snapshot
from stand_ins import LAYER, MODEL, Place, put_package


def loaded(place, *flags: str, **variables: str) -> str:
    """What a child process of the environment makes of the model file."""
    code = (
        "from transformers.models.qwen2.modeling_qwen2 import *; print(getattr(Qwen2ForCausalLM, 'release', 'stock'))"
    )
    command = [place.python, *flags, "-c", code]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        command, capture_output=True, text=True, check=True, env={**environment, **variables}
    ).stdout.strip()


@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard links", "symbolic links"])
def test_an_environment_linked_to_a_cache_is_patched_alone(make_place, link):
    one, two, cache = make_place("one"), make_place("two"), make_place("cache")
    for place in (one, two):
        for path in (MODEL, LAYER):
            (place.site / path).unlink()
            link(cache.site / path, place.site / path)
    before = [place.snapshot() for place in (one, two, cache)]
    one.done("install")
    assert (loaded(one, "-B"), loaded(two, "-B")) == ("0.1.0", "stock")
    assert [two.snapshot(), cache.snapshot()] == before[1:]
    assert not one.model.is_symlink()
    one.done("revert")
    assert [place.snapshot() for place in (one, two, cache)] == before
    if link is os.link:
        assert one.model.samefile(cache.model)


def test_an_original_that_the_cache_lost_is_computed(make_place):
    place, cache = make_place(), make_place("cache")
    stock = place.model.read_bytes()
    place.model.unlink()
    place.model.symlink_to(cache.model)
    place.done("install")
    cache.model.unlink()
    place.done("revert")
    assert place.model.read_bytes() == stock


def test_transformers_and_peft_in_two_site_directories(make_place, tmp_path, monkeypatch):
    place = make_place(peft=None)
    other = tmp_path / "more packages"
    put_package(other, "peft", "2.0")
    (place.site / "more.pth").write_text(str(other))
    before = place.snapshot(), snapshot(other)
    place.done("install")
    assert place.states() == ("patched", "patched", "installed")
    assert (other / ".selfaug" / "receipt.json").exists()
    assert not (other / "selfaug").exists()
    place.done("revert")
    assert (place.snapshot(), snapshot(other)) == before


def test_of_two_copies_the_imported_one_is_patched(make_place, tmp_path, monkeypatch):
    place = make_place(transformers="1.0")
    ahead = tmp_path / "ahead"
    put_package(ahead, "transformers", "2.0")
    monkeypatch.setenv("PYTHONPATH", str(ahead))
    hidden = place.model.read_bytes()
    result = place.done("install")
    assert (
        f"note: Another transformers in {place.site} is hidden by the one in {ahead}, and is left alone." in result.out
    )
    assert place.model.read_bytes() == hidden
    assert (ahead / "selfaug" / "hooks.py").exists()
    assert loaded(place, "-B") == "0.1.0"


def test_a_copy_that_came_ahead_of_a_patched_one_is_not_confused_with_it(make_place, tmp_path, monkeypatch):
    place = make_place(transformers="1.0", peft=None)
    before = place.snapshot()
    place.done("install")
    ahead = tmp_path / "ahead"
    put_package(ahead, "transformers", "2.0")
    with monkeypatch.context() as context:
        context.setenv("PYTHONPATH", str(ahead))
        data = place.status()
        assert data["targets"][0]["state"] == "stock"
        assert any("hidden by other copies" in note for note in data["notes"])
        place.done("revert")
    assert place.states()[0] == "patched"
    place.done("revert")
    assert place.snapshot() == before


def test_a_virtual_environment_that_sees_the_system_packages(make_place, tmp_path):
    base = make_place("base")
    place = Place(tmp_path / "env2", base.selfaug)
    shutil.copytree(base.root, place.root, symlinks=True)
    for name in ("transformers", "transformers-2.0.dist-info"):
        shutil.rmtree(base.site / name)
    shutil.rmtree(place.site / "peft")
    shutil.rmtree(place.site / "peft-2.0.dist-info")
    (place.site / "_system.pth").write_text(str(base.site))
    before = base.snapshot(), place.snapshot()
    place.done("install")
    assert place.states() == ("patched", "patched", "installed")
    place.done("revert")
    assert (base.snapshot(), place.snapshot()) == before


def test_packages_of_the_user_site(make_place, tmp_path, monkeypatch):
    """As `pip install --user` leaves them, seen by an environment that sees the system's packages."""
    place = make_place(transformers=None, peft=None)
    configuration = place.root / "pyvenv.cfg"
    configuration.write_text(configuration.read_text().replace("packages = false", "packages = true"))
    monkeypatch.setenv("PYTHONUSERBASE", str(tmp_path / "home"))
    command = [place.python, "-m", "site", "--user-site"]
    site = Path(subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip())
    assert site.is_relative_to(tmp_path / "home")
    for name in ("transformers", "peft"):
        put_package(site, name, "2.0")
    before = snapshot(site), place.snapshot()
    place.done("install")
    assert (loaded(place, "-B"), (site / "selfaug").is_dir()) == ("0.1.0", True)
    place.done("revert")
    assert (snapshot(site), place.snapshot()) == before


@pytest.fixture
def two_names(make_place, tmp_path, monkeypatch):
    """An environment whose site directory is on the path twice, once by way of a link, as on Fedora."""
    place = make_place()
    (tmp_path / "lib64").symlink_to(place.site)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib64"))
    return place


def test_one_site_directory_under_two_names_is_one(two_names):
    before = two_names.snapshot()
    for verb in ("install", "status"):
        assert "hidden" not in " ".join(two_names.done(verb, "--json").data["notes"])
    two_names.done("revert")
    assert two_names.snapshot() == before


def test_revert_does_not_wait_for_itself_where_one_site_directory_has_two_names(two_names, monkeypatch):
    two_names.done("install")
    for path in [*two_names.site.glob("transformers*"), *two_names.site.glob("peft*")]:
        shutil.rmtree(path)
    assert [note for note in two_names.status()["notes"] if "left behind" in note]
    two_names.done("revert")
    assert list(two_names.snapshot()) == []


@pytest.fixture
def sharing(make_place, tmp_path):
    """Two environments with a transformers each and one peft, in a folder of its own."""
    put_package(tmp_path / "shared", "peft", "2.0")
    places = [make_place(name, peft=None) for name in ("one", "two")]
    for place in places:
        (place.site / "shared.pth").write_text(str(tmp_path / "shared"))
    return places


def test_a_shared_peft_is_taken_from_both_by_one_revert_which_status_tells_the_other(sharing):
    one, two = sharing
    before = one.snapshot(), two.snapshot(), snapshot(one.root.parent / "shared")
    one.done("install")
    assert (two.run("status").code, two.states()) == (1, ("stock", "patched", "missing"))
    two.done("install")
    one.done("revert")
    status = two.status()
    assert (status["exit_code"], two.states()) == (1, ("patched", "stock", "installed"))
    assert status["targets"][1]["next"].endswith(f"install --python {two.python}")
    assert two.run("verify").code == 1
    two.done("install")
    assert two.states() == ("patched", "patched", "installed")
    two.done("revert")
    assert (one.snapshot(), two.snapshot(), snapshot(one.root.parent / "shared")) == before


@pytest.fixture
def nested(make_place):
    """An environment, and one that sees its packages and has a transformers of its own."""
    base, inner = make_place("base"), make_place("inner", peft=None)
    (inner.site / "_system.pth").write_text(str(base.site))
    return base, inner


def test_install_keeps_what_another_environment_wrote_down_about_its_own_files(nested):
    base, inner = nested
    before = base.snapshot(), inner.snapshot()
    base.done("install")
    inner.done("install")
    assert [place.states() for place in nested] == [("patched", "patched", "installed")] * 2
    base.done("revert")
    assert base.snapshot() == before[0]
    assert inner.states() == ("patched", "stock", "installed")
    inner.done("revert")
    assert (base.snapshot(), inner.snapshot()) == before


def test_revert_leaves_the_hidden_transformers_of_another_environment_alone(nested):
    base, inner = nested
    before = base.snapshot(), inner.snapshot()
    base.done("install")
    inner.done("install")
    result = inner.done("revert")
    assert f"note: SelfAug stays in {base.site}, for packages there that are not imported from here." in result.out
    assert result.out.splitlines()[-1].startswith("SelfAug is gone from what this environment imports, and")
    assert inner.snapshot() == before[1]
    assert base.states() == ("patched", "stock", "installed")
    assert "nothing to do" in inner.done("revert").out
    base.done("revert")
    assert base.snapshot() == before[0]


def test_the_runtime_of_a_hidden_transformers_may_be_edited_without_stopping_revert(nested):
    base, inner = nested
    base.done("install")
    inner.done("install")
    (base.site / "selfaug" / "hooks.py").write_text("# mine\n")
    inner.done("revert")
    assert (base.site / "selfaug" / "hooks.py").read_text() == "# mine\n"


@pytest.mark.parametrize("name", ["with spaces", "ünï-ço∂é 環境"])
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_any_path_in_any_locale(make_place, name, locale, monkeypatch):
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.setenv("PYTHONCOERCECLOCALE", "0")
    place = make_place(name)
    before = place.snapshot()
    place.done("install")
    assert place.status()["targets"][0]["path"] == str(place.model)
    place.done("revert")
    assert place.snapshot() == before


def test_the_command_line_itself_runs_in_the_c_locale(make_place):
    place = make_place("é")
    root = Path(__file__).resolve().parents[2]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from selfaug_patcher.cli import main\n"
        "sys.exit(main(['install', '--python', sys.argv[2]], Path(sys.argv[3]), Path(sys.argv[4])))"
    )
    command = [sys.executable, "-c", code, str(root), place.python]
    command += [str(place.selfaug.patches), str(place.selfaug.code)]
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"SelfAug 0.1.0 is installed" in result.stdout


@pytest.mark.parametrize(
    ("mode", "flag"), [("TIMESTAMP", ""), ("CHECKED_HASH", "-O"), ("UNCHECKED_HASH", ""), ("UNCHECKED_HASH", "-OO")]
)
def test_no_stale_bytecode_hides_the_patch_or_survives_it(place, mode, flag):
    mode = py_compile.PycInvalidationMode[mode]
    level = {"": 0, "-O": 1, "-OO": 2}[flag]
    flags = [flag] if flag else []
    py_compile.compile(str(place.model), optimize=level, invalidation_mode=mode, doraise=True)
    before = snapshot(place.model.parent / "__pycache__")
    place.done("install")
    assert loaded(place, *flags) == "0.1.0"
    place.done("revert")
    after = snapshot(place.model.parent / "__pycache__")
    assert {name: after[name] for name in after if "modeling" in name} == before
    assert loaded(place, *flags) == "stock"


def test_an_upgrade_leaves_no_stock_bytecode_beside_the_patched_file(place, newer_selfaug):
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(place.model), invalidation_mode=unchecked, doraise=True)
    before = place.snapshot()
    place.done("install")
    place.done("install", selfaug=newer_selfaug)
    assert loaded(place, "-B") == "0.2.0"
    place.done("revert", selfaug=newer_selfaug)
    assert place.snapshot() == before


def test_revert_asks_nothing_of_a_site_directory_where_it_has_nothing_to_do(make_place, tmp_path):
    place = make_place(peft=None)
    place.done("install")
    other = tmp_path / "system"
    put_package(other, "peft", "2.0")
    (place.site / "system.pth").write_text(str(other))
    before = other.stat().st_mtime_ns
    place.done("revert")
    assert place.states()[0] == "stock"
    assert other.stat().st_mtime_ns == before


def test_bytecode_written_while_patched_is_removed_by_revert(place):
    place.done("install")
    assert loaded(place) == "0.1.0"
    written = list(place.model.parent.glob("__pycache__/modeling_qwen2.*.pyc"))
    assert written
    place.done("revert")
    assert not any(path.exists() for path in written)
    assert not (place.site / "selfaug").exists()
    assert loaded(place) == "stock"


@pytest.mark.parametrize("flag", ["-I", "-O", "-s", "-E"])
def test_the_patch_is_seen_under_every_interpreter_switch(place, flag):
    place.done("install")
    assert loaded(place, "-B", flag) == "0.1.0"


def test_the_metadata_of_an_old_release_that_an_uninstall_left_half_is_no_obstacle(place):
    for name in ("transformers", "peft"):
        (place.site / f"{name}-1.0.dist-info").mkdir()
        (place.site / f"{name}-1.0.dist-info" / "RECORD").touch()
    assert [target["version"] for target in place.status()["targets"]] == ["2.0", "2.0"]
    for info in place.site.glob("*-2.0.dist-info"):
        shutil.rmtree(info)
    assert [target["version"] for target in place.status()["targets"]] == [None, None]
    place.done("install")
    place.done("revert")


def test_a_missing_record_is_no_obstacle(place):
    (place.site / "transformers-2.0.dist-info" / "RECORD").unlink()
    before = place.snapshot()
    place.done("install")
    place.done("revert")
    assert place.snapshot() == before


def test_an_operating_systems_own_packages_are_refused(place, monkeypatch):
    from selfaug_patcher import environment

    answer = {**probe_answer(place), "externally_managed": "/usr/lib/python3/EXTERNALLY-MANAGED"}
    assert environment.from_probe(answer, place.python).packages["transformers"].problems == ()
    for package in answer["packages"].values():
        package["distributions"][0]["installer"] = "debian"
    problems = environment.from_probe(answer, place.python).packages["transformers"].problems
    assert [problem.id for problem in problems] == ["externally-managed"]
    asked = environment.asked_about()
    assert (asked["transformers"][0], asked["peft"]) == (MODEL, [LAYER])


def probe_answer(place) -> dict:
    import json

    from selfaug_patcher import environment, probe

    command = [place.python, "-c", Path(probe.__file__).read_text(), json.dumps(environment.asked_about())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_a_read_only_file_system_is_refused_with_exit_code_5(make_place, tmp_path):
    place = make_place()
    mount = ["mount", "--bind", str(place.root), str(place.root)]
    again = ["mount", "-o", "remount,ro,bind", str(place.root)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        if subprocess.run(again, capture_output=True, check=False).returncode != 0:
            pytest.skip("needs the right to mount read-only")
        result = place.run("install")
        assert result.code == 5
        assert "(read-only file system)" in result.err
        assert place.states() == ("stock", "stock", "missing")
    finally:
        subprocess.run(["umount", str(place.root)], check=True)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_files_of_another_owner_keep_their_owner(place):
    for path in [place.site, *place.site.rglob("*")]:
        os.chown(path, 1234, 2345)
    place.done("install")
    for path in [place.model, *(place.site / "selfaug").rglob("*"), *(place.site / ".selfaug").rglob("*")]:
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345), path
    place.done("revert")
    assert (place.model.stat().st_uid, place.model.stat().st_gid) == (1234, 2345)


def test_a_narrow_umask_does_not_shut_other_users_out(place):
    before = os.umask(0o077)
    try:
        place.done("install")
    finally:
        os.umask(before)
    for folder in ("selfaug", "selfaug/kit", ".selfaug", ".selfaug/originals"):
        assert (place.site / folder).stat().st_mode & 0o777 == place.site.stat().st_mode & 0o777, folder
    assert (place.site / "selfaug" / "hooks.py").stat().st_mode & 0o777 == place.model.stat().st_mode & 0o777
