"""`run`: the same patches, in memory, in the process and in its children; the environment stays as it is."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import packaging
import pytest
from snapshots import snapshot
from stand_ins import put_package


def launch(place, *arguments, python=None, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [python or place.python, *arguments],
        cwd=place.root.parent / "work",
        env={**environment, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_script_its_children_and_spawned_processes_are_patched_and_nothing_is_written(equipped):
    before = snapshot(equipped.root.parent)
    result = launch(equipped, "-m", "selfaug_patcher", "run", "script.py", "all")
    assert result.stdout.split("\n")[:4] == [
        "arguments all",
        "here 0.1.0 True",
        "child 0.1.0 True",
        "spawned 0.1.0 True",
    ], result.stderr
    assert result.returncode == 7
    assert snapshot(equipped.root.parent) == before


@pytest.fixture
def by_path(equipped):
    """A function from a form of starting the patcher to its path: in a checkout beside the working directory, directly
    or through a link. It is not installed."""
    package = equipped.root.parent / "checkout" / "selfaug_patcher"
    package.parent.mkdir()
    shutil.move(equipped.site / "selfaug_patcher", package)
    links = equipped.root.parent / "links"
    links.mkdir()
    (links / "folder").symlink_to(package)
    (links / "file.py").symlink_to(package / "__main__.py")
    paths = {"file": package / "__main__.py", "folder": package, "link to the file": links / "file.py"}
    return {**paths, "link to the folder": links / "folder", "file in a link": links / "folder" / "__main__.py"}.get


needs_safe_path = pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P came with 3.11")
FORMS = ["file", "folder", "link to the file", "link to the folder", "file in a link"]


@pytest.mark.parametrize("form", FORMS)
def test_the_patcher_can_be_started_by_its_path_from_any_folder(equipped, by_path, form):
    """`python CHECKOUT/selfaug_patcher`; the script sees the path that it has with `python -m`."""
    work = equipped.root.parent / "work"
    (work / "paths.py").write_text("import json, sys; print(json.dumps(sys.path))")
    result = launch(equipped, str(by_path(form)), "run", "script.py")
    assert result.stdout.startswith("arguments\nhere 0.1.0 True\n"), result.stderr
    shown = json.loads(launch(equipped, str(by_path(form)), "run", "paths.py").stdout)
    assert shown == json.loads(launch(equipped, "paths.py").stdout)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("flag", ["-I", pytest.param("-P", marks=needs_safe_path)])
def test_a_patcher_that_is_started_by_its_path_leaves_nothing_on_a_path_that_has_no_folder_of_the_script(
    equipped, by_path, form, flag
):
    (equipped.root.parent / "work" / "paths.py").write_text("import json, sys; print(json.dumps(sys.path))")
    shown = launch(equipped, flag, str(by_path(form)), "run", "paths.py")
    assert json.loads(shown.stdout) == json.loads(launch(equipped, flag, "paths.py").stdout), shown.stderr


@pytest.mark.parametrize("script", ["link.py", "linked/paths.py"])
def test_a_script_behind_a_link_has_the_path_that_it_has_without_run(equipped, script):
    work = equipped.root.parent / "work"
    (work / "deep").mkdir()
    (work / "deep" / "paths.py").write_text("import json, sys; print(json.dumps(sys.path))")
    (work / "link.py").symlink_to("deep/paths.py")
    (work / "linked").symlink_to("deep")
    shown = launch(equipped, "-m", "selfaug_patcher", "run", script)
    assert json.loads(shown.stdout) == json.loads(launch(equipped, script).stdout), shown.stderr


@pytest.mark.parametrize("form", FORMS)
def test_a_patcher_that_is_started_by_its_path_names_commands_that_work_where_they_are_typed(equipped, by_path, form):
    path = str(by_path(form))
    status = json.loads(launch(equipped, path, "status", "--json").stdout)
    command = status["targets"][0]["next"]
    assert command == f"{equipped.python} {path} install"
    assert launch(equipped, *command.split()[1:]).returncode == 0
    status = json.loads(launch(equipped, path, "status", "--json").stdout)
    assert [target["state"] for target in status["targets"]] == ["patched", "patched"]


def test_a_module_runs_as_with_python_m(equipped):
    result = launch(equipped, "-m", "selfaug_patcher", "run", "-m", "script", "--json", "-x")
    assert result.stdout == "arguments --json -x\nhere 0.1.0 True\n", result.stderr
    assert result.returncode == 7


def test_a_script_has_the_streams_that_python_gives_it(equipped):
    (equipped.root.parent / "work" / "streams.py").write_text("import sys; print(sys.stdout.errors, sys.stderr.errors)")
    plain = launch(equipped, "streams.py").stdout
    assert launch(equipped, "-m", "selfaug_patcher", "run", "streams.py").stdout == plain


def test_a_module_in_a_package_of_the_runtime_runs_and_leaves_no_bytecode(equipped):
    before = snapshot(equipped.root.parent)
    result = launch(equipped, "-m", "selfaug_patcher", "run", "-m", "selfaug.kit", PYTHONDONTWRITEBYTECODE="")
    assert result.stdout == "kit 0.1.0\n", result.stderr
    written = snapshot(equipped.root.parent).keys() - before.keys()
    assert [name for name in written if "selfaug_patcher/runtime" in name] == []


def test_without_run_the_same_script_is_stock(equipped):
    assert "here stock False" in launch(equipped, "script.py").stdout


def test_another_interpreter_is_taken_by_python_option(equipped, make_place):
    other = make_place("other env")
    (other.site / "packaging").symlink_to(Path(packaging.__file__).parent)
    result = launch(equipped, "-m", "selfaug_patcher", "run", "--python", other.python, "script.py", "all")
    assert "here 0.1.0 True\nchild 0.1.0 True\nspawned 0.1.0 True" in result.stdout, result.stderr


def test_a_modified_file_is_refused_before_the_script_runs(equipped):
    equipped.model.write_text(equipped.model.read_text() + "# mine\n")
    result = launch(equipped, "-m", "selfaug_patcher", "run", "script.py")
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr.startswith("error[modified-file]")
    assert result.stderr.endswith("Nothing was run, and nothing was changed.\n")


def test_a_child_with_other_files_is_refused_rather_than_left_stock(equipped, make_place):
    other = make_place("other")
    other.model.write_text(other.model.read_text() + "# mine\n")
    (other.site / "packaging").symlink_to(Path(packaging.__file__).parent)
    inherit = str(equipped.site / "selfaug_patcher" / "inherit")
    result = launch(equipped, "script.py", python=other.python, PYTHONPATH=inherit)
    assert result.returncode == 1
    assert "error[modified-file]" in result.stderr


def test_a_child_without_transformers_is_left_alone(equipped, make_place):
    other = make_place("other", transformers=None, peft=None)
    (other.site / "packaging").symlink_to(Path(packaging.__file__).parent)
    inherit = str(equipped.site / "selfaug_patcher" / "inherit")
    result = launch(equipped, "-c", "import transformers", python=other.python, PYTHONPATH=inherit)
    assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'transformers'"


def test_an_installed_selfaug_is_used_as_it_is(equipped):
    assert launch(equipped, "-m", "selfaug_patcher", "install").returncode == 0
    result = launch(equipped, "-m", "selfaug_patcher", "run", "script.py", "all")
    assert "here 0.1.0 True\nchild 0.1.0 True\nspawned 0.1.0 True" in result.stdout, result.stderr


def test_a_source_checkout_may_be_used_from_memory(equipped, tmp_path):
    for path in ("transformers", "transformers-2.0.dist-info"):
        shutil.rmtree(equipped.site / path)
    put_package(tmp_path / "src", "transformers", "2.0")
    shutil.rmtree(tmp_path / "src" / "transformers-2.0.dist-info")
    (equipped.site / "checkout.pth").write_text(str(tmp_path / "src"))
    assert launch(equipped, "-m", "selfaug_patcher", "install").returncode == 1
    assert "here 0.1.0 True" in launch(equipped, "-m", "selfaug_patcher", "run", "script.py").stdout


def test_json_and_a_name_on_the_path_go_along_to_another_interpreter(equipped):
    path = os.pathsep.join([str(equipped.root / "bin"), os.environ["PATH"]])
    command = ("-m", "selfaug_patcher", "run", "--python", "python", "--json", "nowhere.py")
    result = launch(equipped, *command, python=sys.executable, PATH=path, PYTHONPATH=str(equipped.site))
    assert (result.returncode, json.loads(result.stdout)["exit_code"]) == (2, 2), result.stderr


def test_an_interpreter_without_packaging_is_refused(equipped, make_place):
    (equipped.site / "packaging").unlink()
    bare = make_place("bare")
    for command in (("status",), ("run", "script.py")):
        result = launch(equipped, "-m", "selfaug_patcher", *command)
        assert (result.returncode, result.stderr.split(":")[0]) == (1, "error[no-packaging]")
        assert f"{equipped.python} -m pip install packaging\nNothing was changed.\n" in result.stderr
    checkout = str(Path(__file__).resolve().parents[2])
    command = ("-m", "selfaug_patcher", "run", "--python", bare.python, "script.py")
    result = launch(equipped, *command, python=sys.executable, PYTHONPATH=checkout)
    assert (result.returncode, result.stderr.split(":")[0]) == (1, "error[no-packaging]")


def test_the_program_that_pip_makes_of_the_package_is_the_package_itself(equipped):
    """`selfaug-patcher`: it refuses what `python -m selfaug_patcher` refuses, in the same words."""
    declared = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    module, function = re.search(r'^selfaug-patcher = "(.+):(.+)"', declared, re.MULTILINE).groups()
    program = f"import sys\nfrom {module} import {function}\nsys.argv[0] = 'selfaug-patcher'\nsys.exit({function}())"
    for packaging_is_there in (True, False):
        by_name = launch(equipped, "-c", program, "status")
        as_module = launch(equipped, "-m", "selfaug_patcher", "status")
        assert (by_name.returncode, by_name.stdout, by_name.stderr) == (
            as_module.returncode,
            as_module.stdout,
            as_module.stderr,
        )
        if packaging_is_there:
            (equipped.site / "packaging").unlink()
    assert by_name.stderr.startswith("error[no-packaging]")


ENDS = {
    "a broken pipe": ("raise BrokenPipeError('mine')", 1, "BrokenPipeError: mine\n"),
    "Ctrl-C": ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "KeyboardInterrupt\n"),
    "an error of the system": ("open('/nowhere/at/all')", 1, "directory: '/nowhere/at/all'\n"),
}


@pytest.mark.parametrize("module", [(), ("-m",)], ids=["script", "module"])
@pytest.mark.parametrize("end", ENDS)
def test_a_script_ends_as_it_does_without_run(equipped, end, module):
    code, exit_code, last = ENDS[end]
    (equipped.root.parent / "work" / "ends.py").write_text(f"{code}\n")
    name = "ends" if module else "ends.py"
    plain = launch(equipped, *module, name)
    result = launch(equipped, "-m", "selfaug_patcher", "run", *module, name)
    assert plain.returncode == result.returncode == exit_code
    assert plain.stderr.endswith(last)
    assert result.stderr.endswith(last)
    assert "Traceback (most recent call last):" in result.stderr


@pytest.mark.parametrize("end", ENDS)
def test_a_package_that_ends_the_run_on_import_does_so_as_without_run(equipped, end):
    code, exit_code, last = ENDS[end]
    (equipped.root.parent / "work" / "ends").mkdir()
    (equipped.root.parent / "work" / "ends" / "__init__.py").write_text(f"{code}\n")
    result = launch(equipped, "-m", "selfaug_patcher", "run", "-m", "ends.part")
    assert (result.returncode, result.stderr.endswith(last)) == (exit_code, True), result.stderr


NOTHING = {
    (): "nothing to run",
    ("nowhere.py",): "no such script",
    ("-m", "nowhere"): "no such module",
    ("-m", "nowhere.module"): "no such module",
    ("-m", "script.module"): "no such module",
    ("-m", "selfaug.kit.nothing"): "no such module",
    ("-m", "transformers"): "no such module",
    ("-m", ".script"): "no such module",
}


@pytest.mark.parametrize(("arguments", "found"), NOTHING.items())
def test_nothing_to_run_is_a_usage_error(equipped, arguments, found):
    result = launch(equipped, "-m", "selfaug_patcher", "run", *arguments)
    assert (result.returncode, found in result.stderr) == (2, True), result.stderr
    assert result.stdout == ""


def test_a_module_that_fails_by_itself_fails_as_it_does_without_run(equipped):
    (equipped.root.parent / "work" / "broken").mkdir()
    (equipped.root.parent / "work" / "broken" / "__init__.py").write_text("import nowhere\n")
    (equipped.root.parent / "work" / "broken" / "__main__.py").write_text("")
    result = launch(equipped, "-m", "selfaug_patcher", "run", "-m", "broken")
    assert result.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'nowhere'"


def test_what_status_says_to_type_works_as_it_stands(equipped, make_place):
    other = make_place("other env")

    def status() -> dict:
        command = ("-m", "selfaug_patcher", "status", "--json", "--python", other.python)
        return json.loads(launch(equipped, *command).stdout)

    def follow(step: str) -> None:
        options = {"cwd": equipped.root.parent / "work", "env": {"PATH": os.environ["PATH"]}}
        result = subprocess.run(step, shell=True, **options, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr

    follow(status()["targets"][0]["next"])
    assert [target["state"] for target in status()["targets"]] == ["patched", "patched"]
    other.model.write_text(other.model.read_text() + "# mine\n")
    follow(status()["targets"][0]["next"].split(" (")[0].replace("DIR", "edits"))
    assert [target["state"] for target in status()["targets"]] == ["stock", "stock"]
    assert "# mine" in (equipped.root.parent / "work" / "edits" / "modeling_qwen2.py").read_text()


def test_the_interpreter_that_the_shell_finds_is_called_by_its_name(equipped):
    path = os.pathsep.join([str(equipped.root / "bin"), os.environ["PATH"]])
    named = json.loads(launch(equipped, "-m", "selfaug_patcher", "status", "--json", PATH=path).stdout)
    assert named["targets"][0]["next"] == "python -m selfaug_patcher install"
    by_path = json.loads(launch(equipped, "-m", "selfaug_patcher", "status", "--json").stdout)
    assert by_path["targets"][0]["next"] == f"{equipped.python} -m selfaug_patcher install"
