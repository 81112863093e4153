"""Every refusal: its exit code, its words, all problems at once, and not a byte changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from stand_ins import forget_record, put_package

from selfaug_patcher import cli

ROOT = Path(__file__).resolve().parents[2]


def refuse(place, *arguments, **options):
    """Run a command that must be refused; its exit code, and its text with the folder cut out."""
    before = place.snapshot()
    result = place.run(*arguments, **options)
    assert place.snapshot() == before
    assert result.out == ""
    assert result.err.splitlines()[-1] == "Nothing was changed."
    return result.code, result.err.replace(str(place.site), "SITE").replace(place.python, "PYTHON")


def test_an_unpinned_release_names_the_nearest_pinned_one(make_place):
    place = make_place(transformers="1.7")
    sha256 = place.status()["targets"][0]["sha256"]
    assert refuse(place, "install", "--pinned-only") == (
        3,
        "error[unpinned-release]: no verified patch for transformers 1.7\n"
        "  expected: a pinned release (1.0 ... 2.0); the nearest is 1.1\n"
        f"  found:    SITE/transformers/models/qwen2/modeling_qwen2.py, sha256 {sha256} (not in the pin table)\n"
        '  do:       PYTHON -m pip install "transformers==1.1", then the same command again; '
        "or, in a checkout of SelfAug, pin this release: "
        "python -m selfaug_patcher pin transformers 1.7 (docs/rebasing.md there)\n"
        "Nothing was changed.\n",
    )


def test_of_an_unpinned_file_without_a_record_nobody_can_tell_whether_pip_installed_it(make_place):
    place = make_place(transformers="1.7")
    forget_record(place.site, "transformers")
    code, text = refuse(place, "install")
    assert (code, place.states()[0]) == (3, "unsupported")
    assert "(not in the pin table, and no RECORD tells whether pip installed this file)" in text
    assert 'PYTHON -m pip install "transformers==1.1", then the same command again' in text


def test_all_problems_are_listed_and_the_gravest_is_the_exit_code(make_place):
    place = make_place(transformers="1.7")
    forget_record(place.site, "transformers")
    place.layer.write_text(place.layer.read_text() + "\n# mine\n")
    code, text = refuse(place, "install")
    assert (code, text.count("error[")) == (4, 2)
    assert "error[unpinned-release]" in text
    assert "error[modified-file]" in text


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda text: text.replace(b"\n", b"\r\n"), "only line ends (CRLF instead of LF) differ"),
        (
            lambda text: text.replace(b"    def", b"    def", 1).replace(b":\n", b": \n", 1),
            "only white space at line ends differ",
        ),
        (lambda text: b"\xef\xbb\xbf" + text, "only a byte order mark at its start differs"),
        (lambda text: text.rstrip(b"\n"), "only the line end of its last line differs"),
        (lambda text: text + b"\n\n", "only empty lines at its end differ"),
    ],
    ids=["crlf", "trailing space", "byte order mark", "last line end", "empty lines"],
)
def test_a_change_that_no_editor_shows_is_refused_and_named(place, edit, what):
    place.model.write_bytes(edit(place.model.read_bytes()))
    code, text = refuse(place, "install")
    assert (code, what in text) == (4, True), text


def test_an_edit_before_install_is_refused_with_the_hash_that_was_expected(place):
    stock = hashlib.sha256(place.model.read_bytes()).hexdigest()
    place.model.write_text(place.model.read_text().replace('"stock"', '"mine"'))
    code, text = refuse(place, "install")
    assert code == 4
    assert f"expected: sha256 {stock}\n" in text
    assert hashlib.sha256(place.model.read_bytes()).hexdigest() in text
    assert 'PYTHON -m pip install --force-reinstall --no-deps "transformers==2.0" (this discards the edits)' in text


def test_an_edit_after_install_is_refused_by_install_and_revert_with_the_difference(place):
    place.done("install")
    place.model.write_text(place.model.read_text() + "# mine\n")
    for verb in ("install", "revert"):
        code, text = refuse(place, verb)
        assert code == 4
        assert "SITE/transformers/models/qwen2/modeling_qwen2.py, compared with the patched file:\n" in text
        assert "+# mine\n" in text
        assert "-class" not in text
        assert "-m selfaug_patcher revert --python PYTHON --keep-edits DIR (saves the" in text
    assert place.run("status").code == 4


def test_keep_edits_saves_the_edited_files_and_restores_stock(place, tmp_path):
    before = place.snapshot()
    place.done("install")
    edited = place.model.read_text() + "# mine\n"
    place.model.write_text(edited)
    hooks = place.site / "selfaug" / "hooks.py"
    hooks.write_text("# mine too\n")
    assert refuse(place, "revert")[1].count("error[modified-file]") == 2
    folder = tmp_path / "edits é"
    place.done("revert", "--keep-edits", str(folder))
    assert (folder / "modeling_qwen2.py").read_text() == edited
    assert (folder / "hooks.py").read_text() == "# mine too\n"
    assert place.snapshot() == before


@pytest.mark.parametrize("inside", [
    "transformers/models/qwen2", "selfaug", ".selfaug/originals", ".", "new/folder", "transformers/models/../x",
])  # fmt: skip
@pytest.mark.parametrize("linked", [False, True])
def test_keep_edits_in_a_folder_among_the_packages_is_refused_and_nothing_is_lost(place, tmp_path, inside, linked):
    place.done("install")
    place.model.write_text(place.model.read_text() + "# mine\n")
    (place.site / "selfaug" / "hooks.py").write_text("# mine too\n")
    folder = place.site / inside
    if linked:
        (tmp_path / "link").symlink_to(folder, target_is_directory=True)
        folder = tmp_path / "link"
    before = place.snapshot()
    for more in ([], ["--dry-run"]):
        code, text = refuse(place, "revert", "--keep-edits", str(folder), *more)
        assert (code, "error[folder-among-packages]" in text) == (2, True)
        assert place.snapshot() == before


def test_keep_edits_does_not_write_through_a_link_to_the_edited_file(place, tmp_path):
    place.done("install")
    edited = place.model.read_text() + "# mine\n"
    place.model.write_text(edited)
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / place.model.name).symlink_to(place.model)
    place.done("revert", "--keep-edits", str(tmp_path / "kept"))
    assert (tmp_path / "kept" / "modeling_qwen2.1.py").read_text() == edited


def test_a_foreign_package_named_selfaug_is_left_alone(place):
    (place.site / "selfaug").mkdir()
    (place.site / "selfaug" / "__init__.py").write_text("# someone else's\n")
    code, text = refuse(place, "install")
    assert (code, "error[foreign-package]" in text) == (4, True)
    assert "not installed: nothing to do" in place.done("revert").out


def test_transformers_absent_is_refused_and_peft_too_old_as_well(make_place):
    place = make_place(transformers=None)
    place.layer.unlink()
    code, text = refuse(place, "install")
    assert "error[not-installed]: transformers is not installed" in text
    assert 'do:       PYTHON -m pip install "transformers<=2.0"' in text
    assert "error[missing-file]: peft lacks a file that it should have" in text
    assert code == 1


def test_an_editable_install_is_refused_with_how_to_go_on(place, tmp_path):
    shutil.rmtree(place.site / "transformers")
    put_package(tmp_path / "checkout", "transformers", "2.0")
    shutil.rmtree(tmp_path / "checkout" / "transformers-2.0.dist-info")
    (place.site / "__editable__.transformers-2.0.pth").write_text(str(tmp_path / "checkout"))
    (place.site / "transformers-2.0.dist-info" / "direct_url.json").write_text(
        '{"url": "file:///checkout", "dir_info": {"editable": true}}'
    )
    code, text = refuse(place, "install")
    assert (code, "error[editable]: transformers is an editable install or a source checkout" in text) == (1, True)
    assert "-m selfaug_patcher run --python PYTHON SCRIPT" in text


@pytest.mark.parametrize(
    "content", [b"[", b"[]", b'{"dir_info": null}', b"\xff", b"[" * 100_000], ids=lambda raw: repr(raw[:20])
)
def test_a_broken_note_of_where_a_package_came_from_does_not_stop_install(place, content):
    (place.site / "transformers-2.0.dist-info" / "direct_url.json").write_bytes(content)
    assert place.run("install").code == 0


def test_in_an_environment_that_uv_filled_the_advice_is_uvs(make_place):
    place = make_place(transformers="1.7")
    (place.site / "transformers-1.7.dist-info" / "INSTALLER").write_text("uv\n")
    assert (
        'do:       uv pip install --python PYTHON "transformers==1.1", then'
        in refuse(place, "install", "--pinned-only")[1]
    )


def test_an_empty_folder_of_an_uninstalled_package_is_refused_with_what_to_do(make_place):
    place = make_place(transformers=None)
    (place.site / "transformers" / "models").mkdir(parents=True)
    code, text = refuse(place, "install")
    assert (code, "error[leftover-package]: transformers is an empty folder" in text) == (1, True)
    assert 'do:       remove that folder, or PYTHON -m pip install "transformers"' in text


def test_an_archive_is_refused(place, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "packages"), "zip", place.site, "transformers")
    shutil.rmtree(place.site / "transformers")
    (place.site / "archive.pth").write_text(archive)
    assert "error[zipped]: transformers is imported from an archive" in refuse(place, "install")[1]


def test_a_folder_that_leads_elsewhere_is_refused(place, tmp_path):
    shutil.move(place.site / "transformers" / "models", tmp_path / "models")
    (place.site / "transformers" / "models").symlink_to(tmp_path / "models")
    before = (tmp_path / "models" / "qwen2" / "modeling_qwen2.py").read_bytes()
    assert "error[outside-package]" in refuse(place, "install")[1]
    assert (tmp_path / "models" / "qwen2" / "modeling_qwen2.py").read_bytes() == before


def bound_by_permissions(place, *arguments: str) -> subprocess.CompletedProcess:
    """Run a command without root's right to read and write everything."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from selfaug_patcher.cli import main\n"
        "sys.exit(main(sys.argv[5:] + ['--python', sys.argv[2]], Path(sys.argv[3]), Path(sys.argv[4])))"
    )
    release = [str(place.selfaug.patches), str(place.selfaug.code)]
    command = [sys.executable, "-c", code, str(ROOT), place.python, *release, *arguments]
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("permissions do not bind root, and there is no setpriv to give that up")
        command = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("closed", [".", ".selfaug"])
def test_a_folder_on_the_path_that_may_not_be_read_is_no_obstacle(place, tmp_path, monkeypatch, closed):
    """Someone else's, in PYTHONPATH or a .pth file; or one where only SelfAug's record is closed."""
    theirs = tmp_path / "theirs" / "site"
    (theirs / ".selfaug").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(theirs))
    (theirs.parent / closed if closed == "." else theirs / closed).chmod(0)
    for verb in ("install", "status", "revert"):
        result = bound_by_permissions(place, verb)
        if closed == "." or verb == "install":
            assert (result.returncode, result.stderr) == (0, "")
        else:
            assert (result.returncode, result.stderr.split(":")[0]) == (5, "error[not-writable]")


def test_an_error_of_the_system_that_nobody_foresaw_has_a_name_too(place, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error", "somewhere")

    monkeypatch.setattr(cli, "inspect", fail)
    assert refuse(place, "diff") == (
        1,
        "error[file-system]: could not finish diff\n  found:    Input/output error: somewhere\n"
        "  do:       once the cause is gone, run the same command again\nNothing was changed.\n",
    )


def test_folders_without_permission_are_all_named_with_exit_code_5(place):
    folders = [place.site, place.model.parent, place.layer.parent]
    for folder in folders:
        folder.chmod(0o555)
    before = place.snapshot()
    result = bound_by_permissions(place, "install")
    assert result.returncode == 5, result.stderr
    assert result.stderr.startswith("error[not-writable]: folders cannot be written to\n")
    assert result.stderr.count("  do:       run the command as the owner, or use SelfAug from memory: ") == 1
    found = result.stderr.partition("found:")[2].partition("  do:")[0].splitlines()
    assert [line.split(" (no permission")[0].strip() for line in found] == [str(folder) for folder in sorted(folders)]
    assert place.snapshot() == before


def test_a_bad_interpreter_is_a_usage_error(place):
    result = place.run("status", python="/nowhere/python")
    assert (result.code, "error[no-interpreter]: cannot run /nowhere/python" in result.err) == (2, True)


@pytest.mark.parametrize("python", ["", "/bin/ls", "/"])
@pytest.mark.parametrize("verb", ["status", "install", "run"])
def test_what_is_no_interpreter_is_never_taken_for_the_running_one(selfaug, capsys, monkeypatch, python, verb):
    """Nor is the empty text, which an unset variable of a script leaves after --python."""
    monkeypatch.setattr(os, "execvpe", None)  # never to be reached, as it would end the tests
    assert cli.main([verb, "--python", python], selfaug.patches, selfaug.code) == 2
    printed = capsys.readouterr()
    assert (printed.out, "error[no-interpreter]: " in printed.err, "  do:       " in printed.err) == ("", True, True)


def test_an_old_interpreter_is_told_what_is_needed(place, tmp_path):
    old = tmp_path / "python3.6"
    old.write_text('#!/bin/sh\necho \'{"executable": "/usr/bin/python3.6", "version": [3, 6, 9]}\'\n')
    old.chmod(0o755)
    result = place.run("install", python=str(old))
    assert (result.code, result.err) == (
        1,
        "error[old-python]: the interpreter is too old for SelfAug\n"
        "  expected: Python 3.9 or later\n"
        f"  found:    Python 3.6.9 ({old})\n"
        "  do:       name another one with --python\n"
        "Nothing was changed.\n",
    )


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8"])
def test_a_real_old_interpreter_gets_no_syntax_error(place, version):
    found = [
        *Path("~/.pyenv/versions").expanduser().glob(f"{version}*/bin/python"),
        *Path("/usr/bin").glob(f"python{version}"),
    ]
    if not found:
        pytest.skip(f"there is no Python {version} here")
    assert f"found:    Python {version}" in place.run("install", python=str(found[0])).err
    command = [str(found[0]), "-B", "-m", "selfaug_patcher", "install"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error[old-python]")
    assert place.run("run", python=str(found[0])).err.startswith("error[old-python]")
    command = [str(found[0]), "-B", "update_module.py"]
    result = subprocess.run(command, cwd=ROOT / "Code", capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr.split(":")[0]) == (1, "error[old-python]")


def test_errors_have_a_json_form(make_place):
    place = make_place(transformers="1.7")
    result = place.run("install", "--json", "--pinned-only")
    assert (result.code, result.data["exit_code"], result.err) == (3, 3, "")
    problem = result.data["error"]["problems"][0]
    assert problem["id"] == "unpinned-release"
    assert result.data["error"]["state"] == "Nothing was changed."


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["install", "--frobnicate"]])
def test_usage_errors_exit_with_2(place, arguments):
    assert place.run(*arguments).code == 2


def test_the_same_file_under_another_version_number_is_accepted_by_its_content(place):
    info = place.site / "transformers-2.0.dist-info"
    info.rename(place.site / "transformers-2.0+vendor.dist-info")
    metadata = place.site / "transformers-2.0+vendor.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("2.0", "2.0+vendor"))
    result = place.done("install")
    assert "note: transformers 2.0+vendor is not pinned; its file is the one of 2.0." in result.out
    assert place.states() == ("patched", "patched", "installed")


def test_a_failing_import_takes_everything_back(place, selfaug, tmp_path):
    broken = type(selfaug)(selfaug.patches, shutil.copytree(selfaug.code, tmp_path / "broken"))
    (broken.code / "hooks.py").write_text("raise RuntimeError('broken on purpose')\n")
    before = place.snapshot()
    result = place.run("install", selfaug=broken)
    assert result.code == 1
    assert result.err.startswith("error[import-failed]: ")
    assert "RuntimeError: broken on purpose" in result.err
    assert result.err.endswith("Everything was put back: nothing was changed.\n")
    assert place.snapshot() == before


def test_packages_that_do_not_import_even_as_stock_are_patched_with_a_note(place):
    (place.site / "peft" / "__init__.py").write_text("raise ImportError('no HybridCache')\n")
    result = place.done("install")
    assert "note: transformers and peft do not import together here, patched or not: ImportError: no HybridCache" in (
        result.out
    )
    assert place.states() == ("patched", "patched", "installed")


def test_stale_bytecode_in_another_folder_is_no_success(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "bytecode"))
    code = "import py_compile as p, sys; p.compile(sys.argv[1], invalidation_mode=p.PycInvalidationMode.UNCHECKED_HASH)"
    subprocess.run([place.python, "-c", code, str(place.model)], check=True)
    result = place.run("install")
    assert (result.code, "Python loaded other code" in result.err) == (1, True), result.err
    assert place.states() == ("stock", "stock", "missing")
