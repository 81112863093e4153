"""Several model families: which of them are patched, and that one does not stand in the way of another."""

from __future__ import annotations

import json
import subprocess

import pytest
from stand_ins import OTHER, make_release
from test_run import launch

from selfaug_patcher import families, proof
from selfaug_patcher.check import Check


@pytest.fixture
def two(monkeypatch, make_place, tmp_path):
    """An environment, and a SelfAug that knows two families."""
    monkeypatch.setattr(families, "MODELS", (families.MODELS[0], OTHER))
    place = make_place()
    place.selfaug = make_release(tmp_path / "two", "0.1.0")
    place.other = place.site / OTHER.path
    return place


@pytest.fixture
def newer(two, tmp_path):
    return make_release(tmp_path / "newer", "0.2.0", mark="  # 0.2")


def imported(place) -> dict[str, str]:
    """By family, what an import gives: stock, or the version of the runtime."""
    code = (
        "import importlib, json\n"
        "found = {}\n"
        "for family, name in (('qwen2', 'Qwen2'), ('other', 'Other')):\n"
        "    module = importlib.import_module(f'transformers.models.{family}.modeling_{family}')\n"
        "    found[family] = getattr(getattr(module, name + 'ForCausalLM'), 'release', 'stock')\n"
        "print(json.dumps(found))"
    )
    result = subprocess.run([place.python, "-B", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def states(place, **options) -> dict[str, str]:
    status = place.status(**options)
    shown = {target["name"].split(":")[1]: target["state"] for target in status["targets"]}
    return {**shown, **status["other_families"]}


@pytest.mark.parametrize(
    ("arguments", "patched"),
    [
        pytest.param([], {"qwen2"}, id="the default"),
        pytest.param(["qwen2"], {"qwen2"}, id="the default by name"),
        pytest.param(["other"], {"other"}, id="another"),
        pytest.param(["other", "qwen2"], {"qwen2", "other"}, id="both by name"),
        pytest.param(["--all"], {"qwen2", "other"}, id="all"),
    ],
)
def test_the_families_that_are_asked_for_are_patched_and_revert_takes_all_out(two, arguments, patched):
    before = two.snapshot()
    two.done("install", *arguments)
    assert imported(two) == {name: "0.1.0" if name in patched else "stock" for name in ("qwen2", "other")}
    assert states(two) == {
        "qwen2": "patched" if "qwen2" in patched else "stock",
        "other": "patched" if "other" in patched else "stock",
        "lora": "patched",
    }
    assert two.status()["exit_code"] == 0
    assert two.run("verify").code == 0
    two.done("revert")
    assert two.snapshot() == before


def test_status_lists_every_family_and_says_more_of_those_in_use(two):
    two.done("install", "other")
    lines = two.run("status").out.splitlines()
    assert lines[:3] == [
        "transformers:other  patched      transformers 2.0, pinned",
        f"{'':<20}{two.other}",
        "peft:lora           patched      peft 2.0, pinned",
    ]
    others = lines.index("other families      stock; `install FAMILY ...` patches these, `install --all` all:")
    assert lines[others + 1] == f"{'':<20}qwen2"


def test_a_family_is_added_to_those_that_are_patched(two):
    before = two.snapshot()
    two.done("install")
    result = two.done("install", "other", "--json")
    assert [change["path"] for change in result.data["changes"]] == [str(two.other)]
    assert imported(two) == {"qwen2": "0.1.0", "other": "0.1.0"}
    assert two.done("install", "qwen2", "--json").data["changed"] is False
    two.done("revert")
    assert two.snapshot() == before


def test_an_upgrade_of_selfaug_takes_every_patched_family_along(two, newer):
    before = two.snapshot()
    two.done("install", "--all")
    assert states(two, selfaug=newer) == {"qwen2": "patched", "other": "patched", "lora": "patched"}
    assert two.run("status", selfaug=newer).out.count("patched by an older SelfAug") == 3
    two.done("install", selfaug=newer)
    assert imported(two) == {"qwen2": "0.2.0", "other": "0.2.0"}
    assert "older" not in two.run("status", selfaug=newer).out
    two.done("revert", selfaug=newer)
    assert two.snapshot() == before


def test_a_selfaug_that_knows_one_family_leaves_the_receipt_of_two_alone(two, monkeypatch, selfaug):
    two.done("install", "--all")
    before = two.snapshot()
    monkeypatch.setattr(families, "MODELS", families.MODELS[:1])
    for verb in ("install", "revert", "status"):
        assert "error[damaged-receipt]" in two.run(verb, selfaug=selfaug).err
    assert two.snapshot() == before


def edit(path) -> None:
    path.write_text(path.read_text() + "# mine\n")


def test_with_all_a_modified_family_is_named_and_does_not_stop_the_others(two):
    edit(two.other)
    result = two.done("install", "--all")
    assert "note: other is left out: the file of transformers 2.0 that SelfAug patches was changed by someone else" in (
        result.out
    )
    assert states(two) == {"qwen2": "patched", "other": "modified", "lora": "patched"}
    assert two.status()["exit_code"] == 0
    assert two.run("verify").code == 0


def test_a_modified_family_that_is_named_is_refused_and_nothing_is_patched(two):
    edit(two.other)
    before = two.snapshot()
    result = two.run("install", "qwen2", "other")
    assert (result.code, two.snapshot()) == (4, before)
    assert f"{two.other}" in result.err


def test_a_modified_family_that_nobody_asked_for_is_no_matter(two):
    edit(two.other)
    two.done("install")
    assert imported(two)["qwen2"] == "0.1.0"


def test_where_every_family_is_modified_all_is_refused_with_each(two):
    edit(two.model)
    edit(two.other)
    result = two.run("install", "--all")
    assert (result.code, result.err.count("error[modified-file]")) == (4, 2)


def test_a_peft_that_must_not_be_patched_stops_all(two):
    edit(two.layer)
    assert two.run("install", "--all").code == 4


def test_a_patched_family_that_was_edited_stops_install_and_is_kept_by_keep_edits(two, tmp_path):
    before = two.snapshot()
    two.done("install", "--all")
    edit(two.other)
    for command in (["install"], ["install", "--all"], ["revert"]):
        assert two.run(*command).code == 4
    assert two.status()["exit_code"] == 4
    two.done("revert", "--keep-edits", str(tmp_path / "edits"))
    assert (tmp_path / "edits" / two.other.name).read_text().endswith("# mine\n")
    assert two.snapshot() == before


def test_a_family_that_the_release_does_not_have_is_left_out_or_refused_by_name(two):
    two.other.unlink()
    for name in ("transformers-2.0.dist-info",):
        (two.site / name).rename(two.site / "transformers-0.9.dist-info")
        metadata = two.site / "transformers-0.9.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("2.0", "0.9"))
    result = two.run("install", "other")
    assert (result.code, "modeling_other.py, which came with transformers 1.0\n" in result.err) == (3, True)
    assert "note: other is left out: no verified patch for transformers 0.9" in two.done("install", "--all").out
    assert states(two) == {"qwen2": "patched", "lora": "patched"}
    assert two.status()["exit_code"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["install", "llama"], "error[usage]: there is no family llama\n  expected: qwen2, other\n"),
        (["install", "--all", "qwen2"], "error[usage]: families are named, and --all"),
        (["run", "--families", "llama", "script.py"], "error[usage]: there is no family llama"),
    ],
)
def test_a_name_that_is_no_family_is_a_usage_error(two, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").touch()
    if arguments[0] == "run":
        from selfaug_patcher import cli

        assert cli.main(arguments, two.selfaug.patches, two.selfaug.code) == 2
        assert words in capsys.readouterr().err
    else:
        result = two.run(*arguments)
        assert (result.code, words in result.err) == (2, True), result.err


def test_a_failing_import_of_one_family_takes_all_back(two, tmp_path):
    broken = make_release(tmp_path / "broken", "0.1.0")
    (broken.code / "hooks.py").write_text(
        "class ReferenceSwitch:\n    selfaug_reference = False\n\n\nclass SelfAligned:\n"
        "    def __init_subclass__(cls):\n        assert cls.__name__ != 'OtherForCausalLM'\n"
    )
    before = two.snapshot()
    assert "error[import-failed]" in two.run("install", "--all", selfaug=broken).err
    assert two.snapshot() == before
    two.done("install", selfaug=broken)


@pytest.fixture
def tried(monkeypatch):
    """The classes that the trial was asked about; those of the families in ``bad`` do not stand it."""
    calls, bad = [], set()

    def trial(environment, patched, stock, packages, classes, report):
        calls.append([name.split(".")[2] for name in classes])
        return [Check("the loss", calls[-1][0] not in bad, "expected: 1\nfound:    2")]

    monkeypatch.setattr(proof, "trial", trial)
    trial.calls, trial.bad = calls, bad
    return trial


def test_only_the_families_that_nobody_has_pinned_are_tried(two, tried, tmp_path):
    pins = two.selfaug.patches / "pins.txt"
    pins.write_text(
        "".join(line for line in pins.read_text().splitlines(True) if "other" not in line or " 1.0" in line)
    )
    two.done("install", "--all")
    assert tried.calls == [["other"]]
    trust = {target["name"]: target["trust"] for target in two.status()["targets"]}
    assert trust == {"transformers:qwen2": "pinned", "transformers:other": "proved here", "peft:lora": "pinned"}


def test_with_all_a_family_that_does_not_stand_the_trial_is_left_out(two, tried):
    pins = two.selfaug.patches / "pins.txt"
    pins.write_text(
        "".join(line for line in pins.read_text().splitlines(True) if "other" not in line or " 1.0" in line)
    )
    tried.bad.add("other")
    result = two.done("install", "--all")
    assert "note: other is left out: SelfAug does not do what it should with transformers 2.0: the loss\n" in result.out
    assert states(two) == {"qwen2": "patched", "other": "unpinned", "lora": "patched"}
    assert two.run("install", "other").code == 3


def test_where_no_family_stands_the_trial_all_is_refused_with_each(two, tried, make_place, tmp_path):
    (two.selfaug.patches / "pins.txt").write_text(
        "".join(line for line in (two.selfaug.patches / "pins.txt").read_text().splitlines(True) if " 2.0 " not in line)
    )
    before = two.snapshot()
    tried.bad.update({"qwen2", "other"})
    result = two.run("install", "--all")
    assert (result.code, two.snapshot()) == (3, before)
    assert result.err.count("error[trial-failed]") == 2


RUN = """
import sys
from selfaug_patcher import families
families.MODELS = (*families.MODELS, families.model("other", "OtherForCausalLM", "1.0"))
from selfaug_patcher.cli import main
from pathlib import Path
sys.exit(main(["run", *sys.argv[3:]], Path(sys.argv[1]), Path(sys.argv[2])))
"""
SCRIPT = """
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM as Q
from transformers.models.other.modeling_other import OtherForCausalLM as O
print(getattr(Q, "release", "stock"), getattr(O, "release", "stock"))
"""


@pytest.mark.parametrize(
    ("options", "output"),
    [
        ([], "0.1.0 stock\n"),
        (["--families", "other"], "stock 0.1.0\n"),
        (["--families", "other,qwen2"], "0.1.0 0.1.0\n"),
        (["--all"], "0.1.0 0.1.0\n"),
    ],
)
def test_run_serves_the_families_that_are_asked_for(two, equipped, tmp_path, options, output):
    (tmp_path / "work" / "families.py").write_text(SCRIPT)
    patches, code = str(two.selfaug.patches), str(two.selfaug.code)
    before = equipped.snapshot()
    result = launch(equipped, "-c", RUN, patches, code, *options, "families.py")
    assert result.stdout == output, result.stderr
    assert equipped.snapshot() == before
