"""`pin` turns a release into a row, or into a merge that a person finishes. On small stand-in files."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import zipfile

import pytest
from releases import TABLE

from selfaug_patcher import pin, pins, udiff, wheels
from selfaug_patcher.errors import PatcherError

QWEN2, LORA = pins.TARGETS
MODEL = """import torch

from ...generation import GenerationMixin
from .configuration_qwen2 import Qwen2Config


class Qwen2Model(Qwen2PreTrainedModel):
    def forward(self, input_ids):
        return input_ids


@auto_docstring
class Qwen2ForCausalLM(Qwen2PreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config):
        self.model = Qwen2Model(config)

    @can_return_tuple
    def forward(self, input_ids, labels=None):
        loss = None
        return loss
"""
LAYER = """from peft.tuners.tuners_utils import BaseTunerLayer


class LoraLayer(BaseTunerLayer):
    # All names of layers that may contain (trainable) adapter weights
    def __init__(self):
        self._disable_adapters = False
"""
PATCH = "transformers/modeling_qwen2-5.0.0rc0.patch"


def sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A patches folder in which 5.0 and 5.2 of transformers and one peft are pinned; wheels come from a folder only."""
    root = tmp_path / "patches"
    rows = []
    for target, versions, text, patch in (
        (QWEN2, ("5.0", "5.2"), MODEL, PATCH),
        (LORA, ("0.7",), LAYER, "peft/layer-0.6.2.patch"),
    ):
        (root / target.package).mkdir(parents=True)
        shutil.copy(TABLE.root / patch, root / patch)
        patched = udiff.apply(TABLE.patches[patch], text.encode())
        rows += [pins.Pin(target.name, version, sha256(text), patch, sha256(patched)) for version in versions]
    (root / "pins.json").write_text(pins.render(rows))
    for name in (PATCH, "peft/layer-0.6.2.patch"):
        lines = (root / name).read_text().split("\n")
        lines[2] = "Applies-To: " + pins.load(root).applies_to(name)
        (root / name).write_text("\n".join(lines))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("SELFAUG_WHEEL_CACHE", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    for version in ("5.0", "5.2"):
        wheel(tmp_path / "wheels", version, MODEL)
    monkeypatch.chdir(tmp_path)
    return root


def wheel(folder, version: str, text: str | None, name: str = "transformers"):
    path = folder / f"transformers-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n")
        if text is not None:
            archive.writestr(QWEN2.path, text)
    return path


def run(root, version: str, *options: str) -> tuple[int, str]:
    parser = argparse.ArgumentParser()
    pin.add_arguments(parser)
    parser.add_argument("--json", action="store_true")
    stream = io.StringIO()
    code = pin.main(parser.parse_args(["transformers", version, *map(str, options)]), root, stream)
    return code, stream.getvalue()


def release(root, version: str, text: str | None, *options: str) -> tuple[int, str]:
    return run(root, version, "--wheel", wheel(root.parent, version, text), *options)


def row(root, version: str) -> pins.Pin:
    found = pins.load(root).by_version(QWEN2.name, version)
    assert found is not None
    return found


def files(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def headers_agree(root) -> bool:
    table = pins.load(root)
    return all(patch.headers["Applies-To"] == table.applies_to(name) for name, patch in table.patches.items())


def test_a_release_with_a_known_file_is_one_new_line(root):
    before = (root / "pins.json").read_text().split("\n")
    code, text = release(root, "5.3", MODEL)
    assert (code, text.split("\n")[0]) == (0, f"transformers 5.3 has the file of 5.0: pinned with {PATCH}.")
    after = (root / "pins.json").read_text().split("\n")
    assert len(after) == len(before) + 1
    assert len([line for line in after if line not in before]) == 2  # the new row, and the comma before it
    assert pins.load(root).patches[PATCH].headers["Applies-To"] == "transformers 5.0-5.3"


def test_a_wheel_that_is_not_given_comes_from_the_cache(root):
    wheel(root.parent / "wheels", "5.3", MODEL)
    assert run(root, "5.3")[0] == 0
    assert row(root, "5.3").note == ""


def test_a_wheel_that_is_given_is_in_the_cache_from_then_on(root):
    assert release(root, "5.3", MODEL)[0] == 0
    kept = wheels.find("transformers", "5.3")
    assert kept.read_bytes() == (root.parent / kept.name).read_bytes()
    assert sorted(path.suffix for path in wheels.cache().iterdir()) == [".whl"] * 3


def test_a_wheel_that_is_refused_is_not_put_into_the_cache(root):
    before = files(wheels.cache())
    for version, text in (("5.2", MODEL + "#"), ("5.3", None)):
        with pytest.raises(PatcherError):
            release(root, version, text)
    assert files(wheels.cache()) == before


def test_a_file_that_a_patch_fits_is_pinned_and_the_change_of_forward_is_shown(root):
    changed = MODEL.replace("loss = None", "loss = 0").replace("import torch", "import torch, math")
    code, text = release(root, "5.3", changed)
    assert code == 0
    assert "-        loss = None\n+        loss = 0\n" in text
    assert "math" not in text
    assert "--- transformers 5.2 Qwen2ForCausalLM.forward\n+++ transformers 5.3 Qwen2ForCausalLM.forward" in text
    assert "READ the change above" in text
    assert row(root, "5.3").stock_sha256 == sha256(changed)
    assert row(root, "5.3").patched_sha256 == sha256(udiff.apply(TABLE.patches[PATCH], changed.encode()))
    assert headers_agree(root)


def test_a_change_elsewhere_is_not_shown(root):
    code, text = release(root, "5.3", MODEL.replace("import torch", "import torch, math"))
    assert code == 0
    assert text.startswith(f"{PATCH} fits the new file")
    assert "what the patch leans on is as in 5.2" in text


def test_a_decorator_or_a_base_class_that_changes_is_shown(root):
    changed = MODEL.replace("    @can_return_tuple\n", "    @deprecate\n")
    changed = changed.replace("\n@auto_docstring\n", "\n@final\n@auto_docstring\n")
    text = release(root, "5.3", changed)[1]
    assert "-    @can_return_tuple\n+    @deprecate\n" in text
    assert "+@final\n @auto_docstring\n" in text


def test_release_candidates_and_yanked_releases_are_marked(root):
    release(root, "5.3rc1", MODEL)
    release(root, "5.3", MODEL, "--yanked")
    assert (row(root, "5.3rc1").note, row(root, "5.3").note) == ("pre-release", "yanked")


def test_a_pinned_release_that_was_withdrawn_since_is_marked(root):
    before = (root / "pins.json").read_text().split("\n")
    assert release(root, "5.2", MODEL, "--yanked") == (
        0,
        f"transformers 5.2 is pinned already: {PATCH}; marked as yanked\n",
    )
    assert (row(root, "5.0").note, row(root, "5.2").note) == ("", "yanked")
    assert len([line for line in (root / "pins.json").read_text().split("\n") if line not in before]) == 1
    assert release(root, "5.2", MODEL, "--yanked")[1] == f"transformers 5.2 is pinned already: {PATCH}\n"
    assert release(root, "5.2", MODEL)[1] == f"transformers 5.2 is pinned already: {PATCH}\n"
    assert row(root, "5.2").note == "yanked"


def test_where_only_the_context_moved_a_person_still_decides(root):
    table = (root / "pins.json").read_text()
    code, text = release(root, "5.3", MODEL.replace("import Qwen2Config\n", "import Qwen2Config  # moved\n"))
    assert code == 1
    assert "No patch fits the new file of transformers 5.3." in text
    assert (root / "pins.json").read_text() == table
    assert "SelfAligned" in (root.parent / "modeling_qwen2-5.3.edited.py").read_text()


def test_an_edited_merge_becomes_a_patch_with_headers(root):
    changed = MODEL.replace("(Qwen2PreTrainedModel, GenerationMixin)", "(Qwen2PreTrainedModel, Generation)")
    code, text = release(root, "5.3", changed)
    path = root.parent / "modeling_qwen2-5.3.edited.py"
    assert code == 1
    assert "conflicts: 1" in text
    assert f"pin transformers 5.3 --from-edited {path.name}" in text
    merged = path.read_text()
    assert "<<<<<<< SelfAug on 5.2\n" in merged
    assert "||||||| transformers 5.2\n" in merged
    assert ">>>>>>> transformers 5.3\n" in merged

    with pytest.raises(PatcherError, match="is a conflict marker"):
        run(root, "5.3", "--from-edited", path)

    edited = changed.replace("import Qwen2Config\n", "import Qwen2Config\nfrom selfaug.hooks import SelfAligned\n")
    edited = edited.replace("(Qwen2PreTrainedModel, Gen", "(SelfAligned, Qwen2PreTrainedModel, Gen")
    path.write_text(edited)
    code, text = run(root, "5.3", "--from-edited", path)  # as printed, without --wheel
    assert code == 0
    name = "transformers/modeling_qwen2-5.3.patch"
    assert f"{name} is a new patch" in text
    table = pins.load(root)
    assert row(root, "5.3").patch == name
    assert udiff.apply(table.patches[name], changed.encode()) == edited.encode()
    assert table.patches[name].headers == {**table.patches[PATCH].headers, "Applies-To": "transformers 5.3"}
    assert [len(hunk.before) for hunk in table.patches[name].hunks] == [2, 3]  # one line of context


def test_context_grows_until_every_hunk_fits_in_one_place_only(root):
    twice = MODEL + MODEL.replace("class Qwen2", "class Other").replace("import torch", "import other")
    edited = twice.replace("import Qwen2Config\n", "import Qwen2Config\nfrom selfaug.hooks import SelfAligned\n", 1)
    path = root.parent / "edited.py"
    path.write_text(edited)
    assert release(root, "5.3", twice, "--from-edited", path)[0] == 0
    (hunk,) = pins.load(root).patch(row(root, "5.3")).hunks
    assert len(hunk.before) > 2


def test_a_row_in_between_splits_the_range_of_the_others(root):
    changed = MODEL.replace("(Qwen2PreTrainedModel, GenerationMixin)", "(Qwen2PreTrainedModel, Generation)")
    path = root.parent / "edited.py"
    path.write_text(changed.replace("import Qwen2Config\n", "import Qwen2Config\nimport selfaug\n"))
    assert release(root, "5.1", changed, "--from-edited", path)[0] == 0
    assert pins.load(root).patches[PATCH].headers["Applies-To"] == "transformers 5.0, 5.2"
    assert headers_agree(root)


def test_an_edit_that_an_existing_patch_would_make_uses_that_patch(root):
    changed = MODEL.replace("import torch", "import torch, math")
    path = root.parent / "edited.py"
    path.write_bytes(udiff.apply(TABLE.patches[PATCH], changed.encode()))
    assert f"{PATCH} makes the same file" in release(root, "5.3", changed, "--from-edited", path)[1]


@pytest.mark.parametrize(
    ("edited", "words"),
    [
        pytest.param(MODEL + "#", "it is the stock file", id="unchanged"),
        pytest.param(MODEL + "def\n", "it does not compile", id="syntax error"),
        pytest.param(None, "cannot be read", id="not there"),
    ],
)
def test_an_edit_that_is_not_finished_is_refused(root, edited, words):
    path = root.parent / "edited.py"
    if edited is not None:
        path.write_text(edited)
    table = (root / "pins.json").read_text()
    with pytest.raises(PatcherError, match=words):
        release(root, "5.3", MODEL + "#", "--from-edited", path)
    assert (root / "pins.json").read_text() == table


@pytest.mark.parametrize(
    ("version", "stock", "edited", "words"),
    [
        pytest.param("5.3", MODEL, MODEL + "more = 1\n", "has the file of 5.0, which has its patch", id="known file"),
        pytest.param("5.2", MODEL, MODEL + "more = 1\n", "has the file of 5.0, which has its patch", id="pinned"),
        pytest.param("5.3", MODEL + "#", None, "two stock files, one outcome", id="result of another release"),
        pytest.param("5.3+vendor", MODEL, "", "is not the version of a release", id="local version"),
    ],
)
def test_a_row_that_would_break_the_table_is_refused_before_anything_is_written(root, version, stock, edited, words):
    path = root.parent / "edited.py"
    path.write_bytes(udiff.apply(TABLE.patches[PATCH], MODEL.encode()) if edited is None else edited.encode())
    before = files(root)
    with pytest.raises(PatcherError, match=words) as caught:
        release(root, version, stock, *(("--from-edited", path) if edited != "" else ()))
    assert str(caught.value).endswith("Nothing was changed.")
    assert files(root) == before


def test_a_merge_is_not_put_over_an_earlier_one(root):
    changed = MODEL.replace("GenerationMixin)", "Generation)")
    release(root, "5.3", changed)
    (root.parent / "modeling_qwen2-5.3.edited.py").write_text("my work")
    with pytest.raises(PatcherError, match="is there from an earlier merge"):
        release(root, "5.3", changed)
    assert (root.parent / "modeling_qwen2-5.3.edited.py").read_text() == "my work"


def test_a_release_that_is_pinned_already_is_left_alone(root):
    table = (root / "pins.json").read_text()
    assert release(root, "5.2", MODEL) == (0, f"transformers 5.2 is pinned already: {PATCH}\n")
    assert (root / "pins.json").read_text() == table


@pytest.mark.parametrize(
    ("version", "text", "words", "code"),
    [
        pytest.param("5.2", MODEL + "#", "is pinned with another file", 1, id="same version, other file"),
        pytest.param("5.3", None, "has no transformers/models/qwen2", 3, id="no such file"),
        pytest.param("latest", MODEL, "is not a version", 2, id="no version"),
    ],
)
def test_what_cannot_be_pinned_is_refused(root, version, text, words, code):
    table = (root / "pins.json").read_text()
    with pytest.raises(PatcherError, match=words) as caught:
        release(root, version, text)
    assert caught.value.exit_code == code
    assert (root / "pins.json").read_text() == table


def test_a_wheel_of_another_release_is_refused(root):
    with pytest.raises(PatcherError, match="is of another release"):
        run(root, "5.3", "--wheel", wheel(root.parent, "5.4", MODEL))
    with pytest.raises(PatcherError, match="is of another release"):
        run(root, "5.3", "--wheel", wheel(root.parent, "5.3", MODEL, name="other"))


def test_the_outcome_is_one_json_object(root):
    code, text = release(root, "5.3", MODEL, "--json")
    found = json.loads(text)
    assert (code, found["outcome"], found["exit_code"]) == (0, "known-file", 0)
    assert found["written"] == [str(root / PATCH), str(root / "pins.json")]
