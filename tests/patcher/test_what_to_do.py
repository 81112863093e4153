"""`status` and `verify` name the cause and the complete command; neither sends anybody to an `install` that refuses."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from stand_ins import forget_record
from test_other_users import close
from test_refusals import bound_by_permissions


def edited(place) -> None:
    place.model.write_text(place.model.read_text() + "# mine\n")


def peft_edited(place) -> None:
    place.layer.write_text(place.layer.read_text() + "# mine\n")


def editable(place) -> None:
    shutil.rmtree(place.site / "transformers-2.0.dist-info")


def foreign(place) -> None:
    (place.site / "selfaug").mkdir()
    (place.site / "selfaug" / "__init__.py").touch()


def file_missing(place) -> None:
    place.layer.unlink()


def folder_elsewhere(place) -> None:
    shutil.move(place.site / "transformers" / "models", place.root / "models")
    (place.site / "transformers" / "models").symlink_to(place.root / "models")


OBSTACLES = (edited, peft_edited, editable, foreign, file_missing, folder_elsewhere)


def steps(data: dict) -> list[str]:
    return [target["next"] for target in data["targets"]]


def test_verify_on_an_unsupported_release_names_file_version_hash_nearest_release_and_command(make_place):
    place = make_place(transformers="1.7")
    forget_record(place.site, "transformers")
    sha256 = place.status()["targets"][0]["sha256"]
    result = place.run("verify")
    install = f"install --python {place.python}"
    assert result.code == 3
    pip, patcher = (
        f'{place.python} -m pip install "transformers==1.1"',
        result.out.split(" && ")[1].split(" install ")[0],
    )
    assert result.out.splitlines() == [
        "FAIL  hash of transformers:qwen2: no verified patch for transformers 1.7",
        "      expected: a pinned release (1.0 ... 2.0); the nearest is 1.1",
        f"      found:    {place.model}, sha256 {sha256} (not in the pin table, and no RECORD tells "
        "whether pip installed this file)",
        f"      do:       {pip} && {patcher} {install}",
        f"FAIL  hash of peft:lora: stock, not patched: {place.layer}, peft 2.0, sha256 "
        + place.status()["targets"][1]["sha256"],
        f"FAIL  hashes of the runtime: {place.site / 'selfaug'}: missing",
        "SelfAug does not work here as it should.",
    ]
    check = place.run("verify", "--json").data["checks"][0]
    assert (check["ok"], check["do"]) == (False, f"{pip} && {patcher} {install}")


def test_status_on_an_unsupported_release_names_the_same(make_place):
    place = make_place(peft="1.7")
    forget_record(place.site, "peft")
    data = place.status()
    out = place.run("status").out
    assert f"why:  no verified patch for peft 1.7: {place.layer}, sha256 {data['targets'][1]['sha256']}" in out
    assert data["targets"][0]["next"] == ""
    assert data["targets"][1]["next"].startswith(f'{place.python} -m pip install "peft==1.1" && ')
    assert data["targets"][1]["next"].endswith(f" -m selfaug_patcher install --python {place.python}")


def test_of_two_unsupported_releases_the_second_leads_to_install(make_place):
    place = make_place(transformers="1.7", peft="1.7")
    forget_record(place.site, "transformers")
    forget_record(place.site, "peft")
    transformers, peft = steps(place.status())
    assert transformers == f'{place.python} -m pip install "transformers==1.1"'
    assert peft.startswith(f'{place.python} -m pip install "peft==1.1" && ')


def test_nothing_leads_to_install_where_one_release_is_unsupported_and_the_other_file_edited(make_place):
    place = make_place(transformers="1.7")
    forget_record(place.site, "transformers")
    peft_edited(place)
    assert steps(place.status())[0] == f'{place.python} -m pip install "transformers==1.1"'


@pytest.mark.parametrize("obstacle", OBSTACLES)
@pytest.mark.parametrize("before", ["stock", "patched", "upgraded", "without peft"])
def test_no_step_is_an_install_that_would_refuse(make_place, obstacle, before):
    place = make_place(transformers="1.1")
    if before == "patched":
        place.done("install")
    elif before == "upgraded":  # as pip leaves it: the newer file is stock, the runtime a leftover
        newer = make_place("newer")
        place.done("install")
        shutil.rmtree(place.site / "transformers")
        shutil.copytree(newer.site / "transformers", place.site / "transformers")
    elif before == "without peft" and obstacle not in (peft_edited, file_missing):
        shutil.rmtree(place.site / "peft")
        shutil.rmtree(place.site / "peft-2.0.dist-info")
    shutil.move(place.site / "transformers-1.1.dist-info", place.site / "transformers-2.0.dist-info")
    if not (obstacle is foreign and (place.site / "selfaug").exists()):
        obstacle(place)
    refuses = place.run("install", "--dry-run").code != 0
    text = place.run("status").out
    says = [
        line
        for line in text.splitlines()
        if "next:" in line and f"selfaug_patcher install --python {place.python}" in line
    ]
    assert not (refuses and says), text
    assert [line for line in text.splitlines() if "next:" in line] or not refuses, text
    result = place.run("verify")
    assert result.code == 0 or "      do:       " in result.out, result.out


def test_a_user_who_may_not_write_is_not_sent_to_install(place):
    close(place)
    result = bound_by_permissions(place, "status")
    assert result.returncode == 0
    assert "selfaug_patcher install" not in result.stdout
    assert "next: run the command as the owner, or use SelfAug from memory: " in result.stdout


def test_a_failing_trial_ends_with_a_command(place, selfaug, tmp_path):
    broken = type(selfaug)(selfaug.patches, shutil.copytree(selfaug.code, tmp_path / "broken"))
    main = broken.code / "trial" / "__main__.py"
    main.write_text(main.read_text().replace('"ok": true', '"ok": false'))
    place.done("install", selfaug=broken)
    result = place.run("verify", selfaug=broken)
    assert result.code == 1
    last = result.out.splitlines()[-1]
    assert f"revert --python {place.python} (restores the stock packages)" in last
    command = last.split("do:")[1].split(" (")[0].strip()
    assert subprocess.run(command, shell=True, check=False).returncode == 0


def test_verify_with_a_wrong_variable_blames_the_variable_and_not_selfaug(place, selfaug, tmp_path, monkeypatch):
    release = type(selfaug)(selfaug.patches, shutil.copytree(selfaug.code, tmp_path / "with settings"))
    for name in ("config.py", "eager.py"):
        shutil.copy(Path(__file__).resolve().parents[2] / "Code" / name, release.code / name)
    place.done("install", selfaug=release)
    (place.site / "sitecustomize.py").write_text("print('mine')")
    place.done("verify", selfaug=release)
    monkeypatch.setenv("SELFAUG_ALHPA", "1")
    result = place.run("verify", selfaug=release)
    assert result.code == 1
    told = "FAIL  SELFAUG_* variables: SELFAUG_ALHPA is not a setting of SelfAug. Did you mean SELFAUG_ALPHA?\n"
    assert told + "      do:       correct or unset that variable" in result.out
    assert result.out.endswith("SelfAug works here.\nBut a variable is wrong, and no training can begin with it.\n")
