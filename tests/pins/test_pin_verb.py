"""`pin` turns the files of a release into rows of the table, or says why it cannot. On small stand-in files."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import zipfile

import pytest
from releases import TABLE

from selfaug_patcher import cli, families, pins
from selfaug_patcher.errors import PatcherError
from selfaug_patcher.maintain import pin, wheels

QWEN2, LORA = families.MODELS[0], families.LAYER
OTHER = families.model("other", "OtherForCausalLM", "5.1")
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


def sha256(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def pinned(target, version: str, text: str, note: str = "") -> pins.Pin:
    patched = TABLE.patched(target, text.encode())
    return pins.Pin(target.name, version, sha256(text), sha256(patched), note)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A patches folder in which 5.0 and 5.2 of transformers and one peft are pinned; wheels come from a folder only."""
    root = shutil.copytree(TABLE.root, tmp_path / "patches")
    rows = [pinned(QWEN2, "5.0", MODEL), pinned(QWEN2, "5.2", MODEL), pinned(LORA, "0.7", LAYER)]
    (root / "pins.txt").write_text(pins.render(rows))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("SELFAUG_WHEEL_CACHE", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    for version in ("5.0", "5.2"):
        wheel(tmp_path / "wheels", version, MODEL)
    monkeypatch.chdir(tmp_path)
    return root


def wheel(folder, version: str, text: str | None, name: str = "transformers", **more: str):
    path = folder / f"transformers-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}-{version}.dist-info/METADATA", f"Name: {name}\nVersion: {version}\n")
        if text is not None:
            archive.writestr(QWEN2.path, text)
        for target, content in more.items():
            archive.writestr(families.model(target, "", "").path, content)
    return path


def run(root, version: str, **options) -> str:
    stream = io.StringIO()
    assert pin.main("transformers", version, root=root, stream=stream, **options) == 0
    return stream.getvalue()


def release(root, version: str, text: str | None, **options) -> str:
    return run(root, version, wheel=wheel(root.parent, version, text), **options)


def row(root, version: str, target=QWEN2) -> pins.Pin | None:
    return pins.load(root).by_version(target.name, version)


def changed_lines(before: str, after: str) -> list[str]:
    return [line for line in after.split("\n") if line not in before.split("\n")]


def files(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_release_with_a_known_file_changes_one_line(root):
    before = (root / "pins.txt").read_text()
    text = release(root, "5.3", MODEL)
    assert text.split("\n")[0] == "transformers 5.3 has the transformers:qwen2 of 5.0: pinned."
    (line,) = changed_lines(before, (root / "pins.txt").read_text())
    assert " 5.0, 5.2-3 " in line
    assert row(root, "5.3") == pinned(QWEN2, "5.3", MODEL)


def test_a_release_with_a_new_file_is_one_more_line(root):
    before = (root / "pins.txt").read_text()
    release(root, "5.3", MODEL + "#")
    after = (root / "pins.txt").read_text()
    assert len(changed_lines(before, after)) == 1
    assert len(after.split("\n")) == len(before.split("\n")) + 1


def test_a_wheel_that_is_not_given_comes_from_the_cache(root):
    wheel(root.parent / "wheels", "5.3", MODEL)
    run(root, "5.3")
    assert row(root, "5.3").note == ""


def test_a_wheel_that_is_given_is_in_the_cache_from_then_on(root):
    release(root, "5.3", MODEL)
    kept = wheels.find("transformers", "5.3")
    assert kept.read_bytes() == (root.parent / kept.name).read_bytes()
    assert sorted(path.suffix for path in wheels.cache().iterdir()) == [".whl"] * 3


def test_a_wheel_that_is_refused_is_not_put_into_the_cache(root):
    before = files(wheels.cache())
    for version, text in (("5.2", MODEL + "#"), ("5.3", None), ("5.4", MODEL.replace("Qwen2For", "For"))):
        with pytest.raises(PatcherError):
            release(root, version, text)
    assert files(wheels.cache()) == before


def test_of_a_new_file_the_change_of_what_the_seam_leans_on_is_shown(root):
    changed = MODEL.replace("loss = None", "loss = 0").replace("import torch", "import torch, math")
    text = release(root, "5.3", changed)
    assert "-        loss = None\n+        loss = 0\n" in text
    assert "math" not in text
    assert "--- transformers 5.2 Qwen2ForCausalLM.forward\n+++ transformers 5.3 Qwen2ForCausalLM.forward" in text
    assert "READ the change above" in text
    assert row(root, "5.3") == pinned(QWEN2, "5.3", changed)


def test_a_change_elsewhere_is_not_shown(root):
    text = release(root, "5.3", MODEL.replace("import torch", "import torch, math"))
    assert text.startswith("transformers 5.3 has a new transformers:qwen2: pinned")
    assert "what the seam leans on is as in 5.2" in text


def test_a_change_of_the_decoder_a_decorator_or_a_base_class_is_shown(root):
    changed = MODEL.replace("    @can_return_tuple\n", "    @deprecate\n").replace("return input_ids", "return 1")
    changed = changed.replace("\n@auto_docstring\n", "\n@final\n@auto_docstring\n")
    text = release(root, "5.3", changed)
    assert "-    @can_return_tuple\n+    @deprecate\n" in text
    assert "+@final\n @auto_docstring\n" in text
    assert "-        return input_ids\n+        return 1\n" in text


def test_each_family_gets_its_row_once_the_release_has_its_file(root, monkeypatch):
    monkeypatch.setattr(families, "MODELS", (QWEN2, OTHER))
    both = {"chosen": families.targets()}
    text = MODEL.replace("Qwen2", "Other").replace("qwen2", "other")
    release(root, "5.1", MODEL)
    assert row(root, "5.1", OTHER) is None
    told = run(root, "5.3", **both, wheel=wheel(root.parent, "5.3", MODEL, other=text))
    assert "transformers 5.3 is the first release with a pinned transformers:other." in told
    assert row(root, "5.3", OTHER) == pinned(OTHER, "5.3", text)
    assert row(root, "5.3") == pinned(QWEN2, "5.3", MODEL)
    assert "has the transformers:other of 5.3" in run(
        root, "5.4", **both, wheel=wheel(root.parent, "5.4", MODEL, other=text)
    )


def test_a_file_of_one_family_without_a_place_for_the_seam_refuses_the_release(root, monkeypatch):
    monkeypatch.setattr(families, "MODELS", (QWEN2, OTHER))
    both = {"chosen": families.targets()}
    before = files(root)
    with pytest.raises(PatcherError, match="one class OtherForCausalLM, at the top level"):
        run(root, "5.3", **both, wheel=wheel(root.parent, "5.3", MODEL, other=MODEL))
    assert files(root) == before


def test_release_candidates_and_yanked_releases_are_marked(root):
    release(root, "5.3rc1", MODEL)
    release(root, "5.3", MODEL, yanked=True)
    assert (row(root, "5.3rc1").note, row(root, "5.3").note) == ("pre-release", "yanked")


def test_a_pinned_release_that_was_withdrawn_since_is_marked(root):
    before = (root / "pins.txt").read_text()
    text = release(root, "5.2", MODEL, yanked=True)
    assert text.startswith("transformers 5.2 is pinned already: transformers:qwen2; marked as yanked\n")
    assert (row(root, "5.0").note, row(root, "5.2").note) == ("", "yanked")
    assert len(changed_lines(before, (root / "pins.txt").read_text())) == 1
    already = "transformers 5.2 is pinned already: transformers:qwen2\n"
    assert release(root, "5.2", MODEL, yanked=True) == release(root, "5.2", MODEL) == already
    assert row(root, "5.2").note == "yanked"


def test_a_release_that_is_pinned_already_is_left_alone(root):
    before = files(root)
    assert release(root, "5.2", MODEL) == "transformers 5.2 is pinned already: transformers:qwen2\n"
    assert files(root) == before


@pytest.mark.parametrize(
    ("version", "text", "words", "code"),
    [
        pytest.param("5.2", MODEL + "#", "is pinned with another transformers/models/qwen2", 1, id="other file"),
        pytest.param("5.3", None, "has no transformers/models/qwen2", 3, id="no such file"),
        pytest.param("latest", MODEL, "is not a version", 2, id="no version"),
        pytest.param("5.3+vendor", MODEL, "is not the version of a release", 2, id="local version"),
        pytest.param("5.3", MODEL.replace("class Qwen2ForCausalLM", "class X"), "have no place", 3, id="no class"),
        pytest.param("5.3", MODEL + "# SelfAug", "the word selfaug in line 23", 3, id="patched already"),
    ],
)
def test_what_cannot_be_pinned_is_refused_before_anything_is_written(root, version, text, words, code):
    before = files(root)
    with pytest.raises(PatcherError, match=words) as caught:
        release(root, version, text)
    assert caught.value.exit_code == code
    assert str(caught.value).endswith("Nothing was changed.")
    assert files(root) == before


def test_a_wheel_of_another_release_is_refused(root):
    with pytest.raises(PatcherError, match="is of another release"):
        run(root, "5.3", wheel=wheel(root.parent, "5.4", MODEL))
    with pytest.raises(PatcherError, match="is of another release"):
        run(root, "5.3", wheel=wheel(root.parent, "5.3", MODEL, name="other"))


def test_the_outcome_is_one_json_object(root):
    data = json.loads(release(root, "5.3", MODEL, as_json=True))
    assert [each["outcome"] for each in data["files"]] == ["known-file"]
    assert data["written"] == [str(root / "pins.txt")]


def test_the_command_line_pins_what_is_pinned_already_in_this_checkout(capsys):
    newest = TABLE.of(LORA.name)[-1].version
    if wheels.find("peft", newest) is None:
        pytest.skip("no wheel in the cache")
    assert cli.main(["pin", "peft", newest]) == 0
    assert capsys.readouterr().out == f"peft {newest} is pinned already: peft:lora\n"


def test_an_installed_patcher_without_the_tools_says_where_releases_are_pinned(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "selfaug_patcher.maintain.pin", None)
    monkeypatch.delattr("selfaug_patcher.maintain.pin", raising=False)
    assert cli.main(["pin", "peft", "9.9"]) == 1
    assert "error[no-checkout]: releases are pinned in a checkout" in capsys.readouterr().err
