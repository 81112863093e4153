"""`run` leaves ``sys.path`` as it is without `run`: here, in another interpreter, and in child processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import packaging
import pytest
from test_run import launch

SCRIPT = """
import json, multiprocessing, os, subprocess, sys


def path(_=None):
    before = list(sys.path)
    from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM
    return before, list(sys.path), getattr(Qwen2ForCausalLM, "release", "stock")


def child(*flags, argument):
    command = [sys.executable, *flags, os.path.abspath(__file__), argument]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def spawned():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(path, [0])[0]


if __name__ == "__main__":
    found = {}
    if sys.argv[1] == "all":
        found = {"spawned before an import": spawned()}
    found["here"] = path()
    if sys.argv[1] != "leaf":
        found.update(spawned=spawned(), child=child(argument="leaf"), optimized=child("-O", argument="leaf"))
        if sys.argv[1] == "all":
            found["grandchildren"] = child(argument="middle")
    print(json.dumps(found))
"""


def releases(found) -> set[str]:
    """What the processes made of the model file."""
    if isinstance(found, dict):
        return set().union(*map(releases, found.values()))
    return {found[2]}


def paths(found):
    """The same without it, so that patched and stock compare."""
    return {name: paths(value) if isinstance(value, dict) else value[:2] for name, value in found.items()}


def look(place, *command: str, **options) -> dict:
    result = launch(place, *command, str(place.root.parent / "work" / "paths.py"), "all", **options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def furnished(equipped, tmp_path):
    """The same environment with folders of .pth files, as editable installs have them, before and after others."""
    for name in ("aaa", "zzz"):
        (tmp_path / name).mkdir()
        (equipped.site / f"__editable__.{name}.pth").write_text(str(tmp_path / name))
    (tmp_path / "work" / "paths.py").write_text(SCRIPT)
    return equipped


PYTHONPATH = {"none": None, "empty": "", "one": "{}/aaa", "the working directory": ":{}/zzz", "all": "{site}"}


@pytest.mark.parametrize("form", PYTHONPATH)
def test_every_process_has_the_path_that_it_has_without_run(furnished, tmp_path, form):
    value = PYTHONPATH[form]
    options = {} if value is None else {"PYTHONPATH": value.format(tmp_path, site=furnished.site)}
    stock, patched = look(furnished, **options), look(furnished, "-m", "selfaug_patcher", "run", **options)
    assert paths(patched) == paths(stock)
    assert (releases(stock), releases(patched)) == ({"stock"}, {"0.1.0"})


@pytest.fixture
def other(furnished, make_place, tmp_path):
    """Another environment, with transformers and peft but without selfaug_patcher; the first has a package more."""
    place = make_place("other env")
    (place.site / "__editable__.more.pth").write_text(str(tmp_path / "zzz"))
    (furnished.site / "only_here").mkdir()
    (furnished.site / "only_here" / "__init__.py").touch()
    return place


@pytest.mark.parametrize("has_packaging", [True, False], ids=["with packaging", "without"])
def test_another_interpreter_has_the_path_that_it_has_without_run(furnished, other, has_packaging):
    if has_packaging:
        (other.site / "packaging").symlink_to(Path(packaging.__file__).parent)
    stock = look(other)
    patched = look(furnished, "-m", "selfaug_patcher", "run", "--python", other.python)
    assert paths(patched) == paths(stock)
    assert releases(patched) == {"0.1.0"}


def test_nothing_else_of_the_patchers_environment_is_found_by_another_interpreter(furnished, other, tmp_path):
    names = ("only_here", "packaging", "selfaug_patcher")
    code = f"import importlib.util as u; print([name for name in {names} if u.find_spec(name)])"
    script = (
        f"import subprocess, sys\nexec({code!r})\nsys.stdout.flush()\nsubprocess.run([sys.executable, '-c', {code!r}])"
    )
    (tmp_path / "work" / "look.py").write_text(script)
    result = launch(furnished, "-m", "selfaug_patcher", "run", "--python", other.python, "look.py")
    assert result.stdout.splitlines() == ["['packaging', 'selfaug_patcher']"] * 2, result.stderr


def test_a_package_of_the_other_interpreter_is_never_hidden_by_the_patchers(furnished, other, tmp_path):
    shutil.copytree(Path(packaging.__file__).parent, other.site / "packaging")
    (tmp_path / "work" / "look.py").write_text("import packaging; print(packaging.__file__)")
    result = launch(furnished, "-m", "selfaug_patcher", "run", "--python", other.python, "look.py")
    assert result.stdout == f"{other.site / 'packaging' / '__init__.py'}\n", result.stderr


@pytest.mark.parametrize("content", ["print('mine', __name__)", "raise RuntimeError('mine')", "import nowhere", None])
def test_the_users_own_sitecustomize_runs_as_it_does_without_run(furnished, tmp_path, content):
    if content is not None:
        (furnished.site / "sitecustomize.py").write_text(content)
    script = (
        "import subprocess, sys\n"
        "code = 'import sys; print(\"sitecustomize\" in sys.modules)'\n"
        "found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "print(found.stdout, found.stderr, found.returncode)"
    )
    (tmp_path / "work" / "look.py").write_text(script)
    plain = launch(furnished, "look.py")
    assert launch(furnished, "-m", "selfaug_patcher", "run", "look.py").stdout == plain.stdout != ""


def test_a_child_that_only_asks_whether_transformers_is_there_gets_the_true_answer(furnished, tmp_path):
    shutil.rmtree(furnished.site / "peft")
    code = "import sys, importlib.util as u; print(bool(u.find_spec('transformers')), bool(u.find_spec('peft')))"
    code += "; print('selfaug_patcher' in sys.modules)"
    (tmp_path / "work" / "look.py").write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}])"
    )
    assert launch(furnished, "-m", "selfaug_patcher", "run", "look.py").stdout == "True False\nFalse\n"


def test_a_child_may_import_the_runtime_first(furnished, tmp_path):
    (tmp_path / "work" / "look.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'selfaug.kit'])"
    )
    result = launch(furnished, "-m", "selfaug_patcher", "run", "look.py")
    assert result.stdout == "kit 0.1.0\n", result.stderr


def test_two_threads_of_a_child_that_import_at_once_both_get_the_patched_modules(furnished, tmp_path):
    (tmp_path / "work" / "threads.py").write_text(
        "import subprocess, sys, threading\n"
        "if sys.argv[1:] != ['child']:\n"
        "    sys.exit(subprocess.run([sys.executable, __file__, 'child']).returncode)\n"
        "gate, found = threading.Barrier(2), []\n"
        "def model():\n"
        "    gate.wait()\n"
        "    from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM as M\n"
        "    found.append(M.release)\n"
        "def layer():\n"
        "    gate.wait()\n"
        "    from peft.tuners.lora.layer import LoraLayer as L\n"
        "    found.append(L.selfaug_reference)\n"
        "threads = [threading.Thread(target=target) for target in (model, layer)]\n"
        "[thread.start() for thread in threads]\n"
        "[thread.join() for thread in threads]\n"
        "print(sorted(map(str, found)))\n"
    )
    for _ in range(5):
        result = launch(furnished, "-m", "selfaug_patcher", "run", "threads.py")
        assert result.stdout == "['0.1.0', 'False']\n", result.stderr


def test_a_refused_child_stays_refused_when_it_tries_again(furnished, make_place, tmp_path):
    other = make_place("other")
    other.model.write_text(other.model.read_text() + "# mine\n")
    (tmp_path / "work" / "again.py").write_text(
        "import sys\nfor name in ('transformers.models', 'peft.tuners', 'transformers.models.qwen2.modeling_qwen2'):\n"
        "    try:\n        __import__(name)\n        print('stock')\n"
        "    except Exception as error:\n        print(type(error).__name__)\n"
    )
    inherit = str(furnished.site / "selfaug_patcher" / "inherit")
    result = launch(furnished, "again.py", python=other.python, PYTHONPATH=inherit)
    assert result.stdout == "PatcherError\n" * 3, result.stderr


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8"])
def test_an_old_python_among_the_children_is_left_alone(version):
    found = [*Path("~/.pyenv/versions").expanduser().glob(f"{version}*/bin/python"), Path(f"/usr/bin/python{version}")]
    if not found[0].exists():
        pytest.skip(f"there is no Python {version} here")
    inherit = Path(__file__).resolve().parents[2] / "selfaug_patcher" / "inherit"
    code = "import sys; print([entry for entry in sys.path if entry.endswith('inherit')])"
    command = [str(found[0]), "-B", "-c", code]
    variables = {**os.environ, "PYTHONPATH": str(inherit)}
    result = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr, result.returncode) == ("[]\n", "", 0), sys.executable
