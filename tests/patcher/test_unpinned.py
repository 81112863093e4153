"""A release that nobody has pinned: tried before anything is written, then patched or refused. The trial is a stand-in
here, which says what it was asked; the real one is in test_trial.py."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from stand_ins import forget_record, put_package
from test_install_and_revert import outcome_of_import
from test_run import launch

from selfaug_patcher import proof
from selfaug_patcher.check import Check

GOOD = [Check("as stock", True, "bit-identical"), Check("gradients", True, "1e-7")]
BAD = [*GOOD, Check("the loss", False, "expected: 1.25\nfound:    1.50"), Check("outputs", False, "KeyError")]


@pytest.fixture
def tried(monkeypatch):
    """What the trial was asked, call by call; it answers with `GOOD`, or what is put into ``answers`` by family."""
    calls = []

    def trial(environment, patched, stock, packages, classes, report):
        report("as stock")
        calls.append({"patched": patched, "stock": stock, "packages": packages, "classes": classes})
        checks = [check for name in classes for check in trial.answers.get(name.split(".")[2], GOOD)]
        return checks if not trial.broken else BAD

    trial.answers, trial.broken, trial.calls = {}, False, calls
    monkeypatch.setattr(proof, "trial", trial)
    return trial


@pytest.fixture
def new(make_place):
    """An environment with a transformers of tomorrow."""
    return make_place(transformers="9.9")


def receipt(place) -> dict:
    return json.loads((place.site / ".selfaug" / "receipt.json").read_text())


def test_a_release_that_stands_the_trial_is_patched_and_every_command_says_so(new, tried):
    before = new.snapshot()
    stock = new.model.read_bytes()
    assert new.states() == ("unpinned", "stock", "missing")
    result = new.done("install")
    assert "note: qwen2: not pinned, proved here, 2 checks." in result.out
    (call,) = tried.calls
    assert call["classes"] == ["transformers.models.qwen2.modeling_qwen2:Qwen2ForCausalLM"]
    assert call["stock"]["transformers.models.qwen2.modeling_qwen2"] == (str(new.model), stock)
    assert call["patched"]["transformers.models.qwen2.modeling_qwen2"] == (str(new.model), new.model.read_bytes())
    assert call["patched"]["peft.tuners.lora.layer"] == (str(new.layer), new.layer.read_bytes())
    assert call["packages"] == {"selfaug": str(new.selfaug.code)}
    assert outcome_of_import(new) == "0.1.0 True"

    target, layer = new.status()["targets"]
    assert (target["state"], target["trust"]) == ("patched", "proved here")
    assert set(target["proved_with"]) == {"transformers", "peft", "torch", "python"}
    assert target["proved_with"]["transformers"] == "9.9"
    assert (layer["trust"], layer["proved_with"]) == ("pinned", {})
    assert "transformers 9.9, proved here\n" in new.run("status").out
    assert "proved here: transformers 9.9, peft 2.0, torch " in new.run("verify").out
    new.done("revert")
    assert new.snapshot() == before


def test_the_trial_comes_before_anything_is_written(new, tried, monkeypatch):
    before = new.snapshot()
    seen = []

    def trial(*order):
        seen.append({path: kind for path, kind in new.snapshot().items() if not path.startswith(".selfaug")})
        return GOOD

    monkeypatch.setattr(proof, "trial", trial)
    new.done("install")
    assert seen == [before]


def test_a_release_that_does_not_stand_the_trial_is_refused_with_the_check_and_the_release_to_take(new, tried):
    tried.broken = True
    before = new.snapshot()
    result = new.run("install")
    assert (result.code, new.snapshot()) == (3, before)
    assert result.err.replace(new.python, "PYTHON") == (
        "trial of SelfAug with these packages: some 20 seconds\n"
        "error[trial-failed]: SelfAug does not do what it should with transformers 9.9: the loss\n"
        "  expected: 1.25\n"
        "  found:    1.50\n"
        '  do:       PYTHON -m pip install "transformers==2.0", then the same command again\n'
        "error[trial-failed]: SelfAug does not do what it should with transformers 9.9: outputs\n"
        "  expected: a check that holds\n"
        "  found:    KeyError\n"
        '  do:       PYTHON -m pip install "transformers==2.0", then the same command again\n'
        "Nothing was changed.\n"
    )


def test_a_trial_without_a_check_proves_nothing(new, tried):
    tried.answers = {"qwen2": []}
    assert (new.run("install").code, new.states()) == (3, ("unpinned", "stock", "missing"))


def test_pinned_only_refuses_without_a_trial(new, tried):
    before = new.snapshot()
    result = new.run("install", "--pinned-only")
    assert (result.code, tried.calls, new.snapshot()) == (3, [], before)
    assert "error[unpinned-release]: no verified patch for transformers 9.9\n" in result.err


@pytest.mark.parametrize("torch", ["as it was", "another"])
def test_pinned_only_refuses_also_what_was_proved_here_before(new, tried, torch):
    new.done("install")
    if torch == "another":
        (new.site / "torch-2.14.0.dist-info").mkdir()
        (new.site / "torch-2.14.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.14.0\n")
    before = new.snapshot()
    result = new.run("install", "--pinned-only")
    assert (result.code, len(tried.calls), new.snapshot()) == (3, 1, before)
    assert "error[unpinned-release]: no verified patch for transformers 9.9\n" in result.err
    assert "no RECORD" not in result.err


def test_pinned_only_takes_a_pinned_release_that_an_older_selfaug_patched(place, newer_selfaug):
    place.done("install")
    place.done("install", "--pinned-only", selfaug=newer_selfaug)
    assert outcome_of_import(place) == "0.2.0 True"


def test_a_pinned_release_needs_no_trial(place, tried):
    place.done("install")
    assert tried.calls == []
    assert [target["trust"] for target in place.status()["targets"]] == ["pinned", "pinned"]
    assert "proved" not in json.dumps(receipt(place))


def test_a_peft_that_nobody_has_pinned_is_tried_with_the_models(make_place, tried):
    place = make_place(peft="9.9")
    assert place.states() == ("stock", "unpinned", "missing")
    place.done("install")
    assert [call["classes"] for call in tried.calls] == [["transformers.models.qwen2.modeling_qwen2:Qwen2ForCausalLM"]]
    assert [target["trust"] for target in place.status()["targets"]] == ["pinned", "proved here"]


def test_a_refusal_names_the_package_that_nobody_has_pinned(make_place, tried):
    place = make_place(transformers="9.9", peft="9.8")
    tried.broken = True
    text = place.run("install").err
    assert "with transformers 9.9, peft 9.8: the loss\n" in text
    assert ' install "transformers==2.0" && ' in text
    assert ' install "peft==2.0", then the same command again\n' in text


def test_a_file_that_is_not_the_one_of_pip_is_modified_and_not_tried(new, tried):
    new.model.write_text(new.model.read_text() + "# mine\n")
    result = new.run("install")
    assert (result.code, tried.calls) == (4, [])
    assert new.states()[0] == "modified"
    assert "error[modified-file]" in result.err
    assert ' --force-reinstall --no-deps "transformers==9.9" (this discards the edits)' in result.err


def test_a_change_that_no_editor_shows_is_named_by_what_pip_installed(new, tried):
    new.model.write_bytes(new.model.read_bytes().replace(b"\n", b"\r\n"))
    assert "only line ends (CRLF instead of LF) differ" in new.run("install").err


def test_a_file_without_a_place_for_the_seam_is_refused_with_the_reason(make_place, tried):
    place = make_place()
    shutil.rmtree(place.site / "transformers-2.0.dist-info")
    put_package(place.site, "transformers", "9.9", change=lambda text: text.replace("class Qwen2For", "class For"))
    result = place.run("install")
    assert (result.code, place.states()[0], tried.calls) == (3, "unsupported", [])
    assert "error[no-seam]" in result.err
    assert "expected: one class Qwen2ForCausalLM, at the top level\n" in result.err
    assert ' install "transformers==2.0", then the same command again' in result.err
    assert "SelfAug's lines have no place in " in place.run("status").out


def test_a_release_whose_version_is_pinned_with_another_file_is_tried_where_pip_installed_that_file(make_place, tried):
    place = make_place()
    shutil.rmtree(place.site / "transformers-2.0.dist-info")
    put_package(place.site, "transformers", "2.0", change=lambda text: text + "# a vendor's build\n")
    place.done("install")
    assert len(tried.calls) == 1


def test_without_peft_there_is_nothing_to_try(make_place, tried):
    place = make_place(transformers="9.9", peft=None)
    result = place.run("install")
    assert (result.code, tried.calls) == (1, [])
    assert "error[no-trial]" in result.err


def test_a_dry_run_tries_nothing_and_says_that_install_will(new, tried):
    before = new.snapshot()
    result = new.done("install", "--dry-run")
    assert "note: qwen2 is not pinned: install tries it first, in memory, and refuses it if a check does not hold." in (
        result.out
    )
    assert (tried.calls, new.snapshot()) == ([], before)


def test_a_second_install_tries_nothing_and_changes_nothing(new, tried):
    new.done("install")
    before = new.snapshot()
    assert "installed already" in new.done("install").out
    assert (len(tried.calls), new.snapshot()) == (1, before)


def test_another_version_than_the_one_of_the_proof_is_noticed_and_install_proves_anew(new, tried):
    new.done("install")
    (new.site / "torch-2.14.0.dist-info").mkdir()
    (new.site / "torch-2.14.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.14.0\n")
    data = new.status()
    (note,) = [note for note in data["notes"] if "was proved here" in note]
    assert "transformers:qwen2 was proved here with torch (none); torch is 2.14.0 now: run " in note
    assert data["exit_code"] == 0
    new.done("install")
    assert len(tried.calls) == 2
    assert receipt(new)["targets"]["transformers:qwen2"]["proved"]["torch"] == "2.14.0"
    assert not [note for note in new.status()["notes"] if "was proved here" in note]


def test_a_proof_that_no_longer_holds_leaves_what_is_installed(new, tried):
    new.done("install")
    (new.site / "torch-2.14.0.dist-info").mkdir()
    (new.site / "torch-2.14.0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.14.0\n")
    before, tried.broken = new.snapshot(), True
    assert new.run("install").code == 3
    assert new.snapshot() == before


def test_a_release_that_is_pinned_later_needs_no_proof(new, tried, make_release_with):
    new.done("install")
    later = make_release_with("1.0", "1.1", "2.0", "9.9")
    assert new.status(selfaug=later)["targets"][0]["trust"] == "pinned"
    new.done("install", selfaug=later)
    assert (len(tried.calls), "proved" in json.dumps(receipt(new))) == (1, False)


def test_an_older_selfaugs_unpinned_file_is_tried_again_by_a_newer_one(new, tried, newer_selfaug):
    before = new.snapshot()
    new.done("install")
    assert "patched by an older SelfAug" in new.run("status", selfaug=newer_selfaug).out
    new.done("install", selfaug=newer_selfaug)
    assert len(tried.calls) == 2
    assert outcome_of_import(new) == "0.2.0 True"
    new.done("revert", selfaug=newer_selfaug)
    assert new.snapshot() == before


def test_a_lost_record_still_reverts_to_stock(new, tried):
    before = new.model.read_bytes()
    new.done("install")
    shutil.rmtree(new.site / ".selfaug")
    assert new.states() == ("patched", "patched", "installed")
    assert "transformers:qwen2 is not pinned, and no record says that it was proved: run " in new.run("status").out
    new.done("revert")
    assert (new.model.read_bytes(), new.states()) == (before, ("unpinned", "stock", "missing"))


def test_an_edit_after_install_is_refused_and_kept_by_keep_edits(new, tried, tmp_path):
    before = new.snapshot()
    new.done("install")
    new.model.write_text(new.model.read_text() + "# mine\n")
    assert "+# mine\n" in new.run("revert").err
    new.done("revert", "--keep-edits", str(tmp_path / "edits"))
    assert (tmp_path / "edits" / new.model.name).read_text().endswith("# mine\n")
    assert new.snapshot() == before


def test_a_release_that_pip_has_put_over_a_patched_one_is_tried(place, tried):
    place.done("install")
    shutil.rmtree(place.site / "transformers-2.0.dist-info")
    put_package(place.site, "transformers", "9.9")
    assert place.states() == ("unpinned", "patched", "leftover")
    place.done("install")
    assert len(tried.calls) == 1
    assert place.status()["targets"][0]["trust"] == "proved here"


def test_a_damaged_proof_is_refused(new, tried):
    new.done("install")
    path = new.site / ".selfaug" / "receipt.json"
    for proved in ({"numpy": "2"}, {"torch": "$(x)"}, {"torch": 2}, []):
        data = receipt(new)
        data["targets"]["transformers:qwen2"]["proved"] = proved
        path.write_text(json.dumps(data))
        assert "error[damaged-receipt]" in new.run("status").err


TRIED = """
import sys
from selfaug_patcher import cli, proof
from selfaug_patcher.check import Check
proof.trial = lambda *order: print("tried", file=sys.stderr) or [Check("x", {ok}, "y")]
sys.exit(cli.main(["run", {options}"script.py", "all"]))
"""


def run_script(place, ok: bool, options: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return launch(place, "-c", TRIED.format(ok=ok, options=options), **variables)


@pytest.fixture
def equipped_new(equipped):
    shutil.rmtree(equipped.site / "transformers-2.0.dist-info")
    put_package(equipped.site, "transformers", "9.9")
    return equipped


def test_run_tries_once_and_its_children_take_its_word(equipped_new):
    before = equipped_new.snapshot()
    result = run_script(equipped_new, ok=True)
    assert result.stdout.split("\n")[1:4] == ["here 0.1.0 True", "child 0.1.0 True", "spawned 0.1.0 True"], (
        result.stderr
    )
    assert result.stderr.count("tried") == 1
    assert "SelfAug: not pinned, proved here, 1 checks: transformers 9.9\n" in result.stderr
    assert equipped_new.snapshot() == before


def test_run_refuses_what_does_not_stand_the_trial(equipped_new):
    result = run_script(equipped_new, ok=False)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.endswith("Nothing was run, and nothing was changed.\n")
    assert "error[trial-failed]" in result.stderr


def test_run_with_pinned_only_tries_nothing(equipped_new):
    result = run_script(equipped_new, ok=True, options='"--pinned-only", ')
    assert (result.returncode, "tried" in result.stderr) == (3, False)
    assert "error[unpinned-release]" in result.stderr


def test_a_child_that_nobody_proved_anything_to_is_refused(equipped_new):
    inherit = str(equipped_new.site / "selfaug_patcher" / "inherit")
    result = launch(equipped_new, "-c", "import transformers.models.qwen2.modeling_qwen2", PYTHONPATH=inherit)
    assert "error[unpinned-release]" in result.stderr
    assert result.returncode == 1


def test_forgetting_the_record_is_what_makes_a_file_untold(new):
    assert new.states()[0] == "unpinned"
    forget_record(new.site, "transformers")
    assert new.states()[0] == "unsupported"
