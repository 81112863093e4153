"""`nox -s new-releases` on stand-in releases: what holds is pinned and written down, what is stopped leaves no trace.

The environments are stand-ins, too: tests/matrix.py makes real ones, and takes minutes for each pair.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from unittest.mock import Mock

import pytest
from releases import TABLE

from selfaug_patcher import families, pins

QWEN2, LORA = families.MODELS[0], families.LAYER
ROOT = Path(__file__).parent.parent.parent
MODEL = """from .configuration_qwen2 import Qwen2Config


class Qwen2ForCausalLM(Qwen2PreTrainedModel, GenerationMixin):
    def forward(self, input_ids, labels=None):
        return None
"""
LAYER = """class LoraLayer(BaseTunerLayer):
    def __init__(self):
        self._disable_adapters = False
"""
PAGE = """# Releases

<!-- matrix: begin -->
| transformers | peft | checks that hold | two training steps, KL at the second |
|---|---|---|---|
| 5.2 | 0.7 | ok | 1.00e-02 nats |
| 5.2 | 0.6 | ok | 1.00e-02 nats |

2 of 2 work.
<!-- matrix: end -->
"""
FILES = {
    "docs/releases.md": PAGE,
    "README.md": "It needs Python, for transformers 5.2.\n",
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- A thing.\n\n## [1.0]\n\n### Added\n\n- All.\n",
    "requirements.txt": "torch==2.13.0\ntransformers==5.2\npeft==0.7\npackaging>=23\n",
    "tests/matrix_pairs.txt": "# pairs\n\n5.2       0.7     0.6\n",
    "tests/test_readme.py": "from pathlib import Path\nPath('README.md').open('a').write('generated\\n')\n",
    "tests/pins/history.py": "from pathlib import Path\nPath('docs/releases.md').open('a').write('replayed\\n')\n",
    "Code/hooks.py": "",
    "selfaug_patcher/seam.py": "",
}


@pytest.fixture
def new_releases(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests")
    import new_releases

    return new_releases


@pytest.fixture
def root(tmp_path, monkeypatch, new_releases):
    """A checkout in which transformers 5.2 and two releases of peft are pinned; wheels come from a folder only."""
    root = tmp_path / "checkout"
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "patches").mkdir()
    for path in TABLE.root.glob("*.seam"):
        (root / "patches" / path.name).write_bytes(path.read_bytes())
    rows = [row(QWEN2, "5.2", MODEL), row(LORA, "0.6", LAYER + "#"), row(LORA, "0.7", LAYER)]
    (root / "patches" / "pins.txt").write_text(pins.render(rows))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("SELFAUG_WHEEL_CACHE", str(tmp_path / "wheels"))
    (tmp_path / "wheels").mkdir()
    for target, version, text in ((QWEN2, "5.2", MODEL), (LORA, "0.6", LAYER + "#"), (LORA, "0.7", LAYER)):
        wheel(tmp_path, target, version, text)
    monkeypatch.setattr(new_releases.matrix_pairs, "PATH", root / "tests" / "matrix_pairs.txt")
    monkeypatch.chdir(root)
    return root


def row(target, version: str, text: str) -> pins.Pin:
    sha256 = [hashlib.sha256(each).hexdigest() for each in (text.encode(), TABLE.patched(target, text.encode()))]
    return pins.Pin(target.name, version, *sha256)


def wheel(tmp_path, target, version: str, text: str) -> None:
    with zipfile.ZipFile(tmp_path / "wheels" / f"{target.package}-{version}-py3-none-any.whl", "w") as archive:
        metadata = f"Metadata-Version: 2.1\nName: {target.package}\nVersion: {version}\n"
        archive.writestr(f"{target.package}-{version}.dist-info/METADATA", metadata)
        archive.writestr(target.path, text)


@pytest.fixture
def given(new_releases, root, tmp_path, monkeypatch):
    """A function that runs new releases, given as (target, version, text), where only the pairs of ``fails`` fail.
    Returns the exit code."""

    def run(*releases, fails=()):
        now = []

        def install(of):
            now[:] = [of.name.split("-")[1]]

        def prove(environments, work, checkout):
            pair = (environments.create.call_args[0][0], now[0])
            table = pins.load(checkout / "patches")
            assert table.by_version(QWEN2.name, pair[0]), "the working copy has the release"
            assert table.by_version(LORA.name, pair[1]), "the working copy has the release"
            if pair in fails:
                raise new_releases.Failure("verify: exact: plain: expected: 0; found: 1")
            return {"checks": "52", "kl": "2.00e-02"}

        environments = Mock()
        environments.install.side_effect = install
        monkeypatch.setattr(new_releases.matrix, "Environments", Mock(return_value=environments))
        monkeypatch.setattr(new_releases.matrix, "tiny_model", Mock())
        monkeypatch.setattr(new_releases.matrix, "prove", prove)
        monkeypatch.setattr(new_releases.matrix, "stock_outcome", Mock(return_value="works"))
        for target, version, text in releases:
            wheel(tmp_path, target, version, text)
        work = tmp_path / "work"
        work.mkdir()
        found = [new_releases.Release(target.package, version) for target, version, _ in releases]
        return new_releases.run(found, root, work)

    return run


def files(root) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def changed(root, before) -> dict[str, list[str]]:
    """The lines that are new, by file."""
    after = files(root)
    assert after.keys() == before.keys()
    lines = {name: [line for line in after[name].split("\n") if line not in before[name].split("\n")] for name in after}
    return {name: new for name, new in lines.items() if new}


def test_a_release_with_a_new_file_is_pinned_and_written_down_everywhere(given, root, capsys):
    before = files(root)
    text = MODEL.replace("return None", "return 1")
    assert given((QWEN2, "5.3", text)) == 0
    (pinned,) = [line for line in pins.render([row(QWEN2, "5.3", text)]).split("\n") if "5.3" in line]
    assert changed(root, before) == {
        "patches/pins.txt": [pinned],
        "tests/matrix_pairs.txt": ["5.3       0.7     0.6"],
        "docs/releases.md": [
            "| 5.3 | 0.7 | 52 | 2.00e-02 nats |", "| 5.3 | 0.6 | 52 | 2.00e-02 nats |", "4 of 4 work.", "replayed",
        ],
        "README.md": ["It needs Python, for transformers 5.3.", "generated"],
        "CHANGELOG.md": ["- transformers 5.3 is supported."],
        "requirements.txt": ["transformers==5.3"],
    }  # fmt: skip
    said = capsys.readouterr().out
    assert "-        return None\n+        return 1\n" in said
    assert "transformers 5.3 has a new transformers:qwen2: pinned; READ the change above." in said


def test_a_release_with_a_known_file_takes_the_place_of_the_one_before(given, root, capsys):
    assert given((QWEN2, "5.3", MODEL)) == 0
    after = files(root)
    assert " 5.2-3 " in after["patches/pins.txt"]
    assert after["tests/matrix_pairs.txt"] == "# pairs\n\n5.3       0.7     0.6\n"
    assert "| 5.2 |" not in after["docs/releases.md"]
    assert capsys.readouterr().out == "transformers 5.3 has the transformers:qwen2 of 5.2: pinned.\n"


def test_a_release_of_peft_is_run_beside_the_newest_transformers(given, root):
    assert given((LORA, "0.8", LAYER + "##")) == 0
    after = files(root)
    assert after["tests/matrix_pairs.txt"].endswith("5.2       0.7     0.6     0.8\n")
    assert "| 5.2 | 0.8 | 52 | 2.00e-02 nats |" in after["docs/releases.md"]
    assert after["requirements.txt"] == "torch==2.13.0\ntransformers==5.2\npeft==0.8\npackaging>=23\n"


def test_a_release_that_fails_leaves_the_checkout_as_it_was_and_the_check_is_named_in_one_line(given, root, capsys):
    before = files(root)
    assert given((QWEN2, "5.3", MODEL + "#"), fails=[("5.3", "0.6")]) == 1
    assert files(root) == before
    assert capsys.readouterr().out == (
        "transformers 5.3 is stopped: verify: exact: plain: expected: 0; found: 1 "
        "(beside peft 0.6; with the stock files, the training works)\n"
    )


def test_a_release_without_a_place_for_the_seam_is_stopped_in_one_line(given, root, capsys):
    before = files(root)
    assert given((QWEN2, "5.3", MODEL.replace("class Qwen2For", "class For"))) == 1
    assert files(root) == before
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("transformers 5.3 is stopped: error[no-seam]: SelfAug's lines have no place in ")
    assert "expected: one class Qwen2ForCausalLM, at the top level; found: none" in line


def test_of_two_releases_the_one_that_holds_is_pinned(given, root, capsys):
    assert given((QWEN2, "5.3", MODEL), (QWEN2, "5.4", MODEL + "#"), fails=[("5.4", "0.7")]) == 1
    after = files(root)
    assert pins.load(root / "patches").of(QWEN2.name)[-1].version == "5.3"
    assert "transformers==5.3\n" in after["requirements.txt"]
    assert "5.4" not in "".join(after.values())
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "transformers 5.3 has the transformers",
        "transformers 5.4 is stopped",
    ]


def test_a_release_that_needs_the_new_one_of_the_other_package_is_tried_again_beside_it(given, root, capsys):
    assert given((LORA, "0.8", LAYER + "##"), (QWEN2, "5.3", MODEL), fails=[("5.2", "0.8")]) == 0
    assert files(root)["tests/matrix_pairs.txt"] == "# pairs\n\n5.3       0.7     0.6     0.8\n"
    assert "stopped" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("offered", "found"),
    [
        pytest.param("5.24.0 5.23.0 4.36.0", [], id="nothing new"),
        pytest.param("5.25.0 5.24.1 5.24.0", ["5.24.1", "5.25.0"], id="oldest first"),
        pytest.param("5.25.0rc1 5.25.0.dev3 5.25.0b1", [], id="no pre-releases"),
        pytest.param("6.0.0 5.25.0.post1", ["5.25.0.post1", "6.0.0"], id="a new major, a post-release"),
        pytest.param("4.57.7 4.58.0", ["4.57.7", "4.58.0"], id="of an older series"),
        pytest.param("4.51.4", ["4.51.4"], id="a fix of an older minor"),
        pytest.param("5.10.3 4.36.9 3.0", [], id="overtaken, or before the first"),
    ],
)
def test_a_release_is_new_if_it_is_newer_than_every_pin_of_its_series(offered, found, new_releases):
    pinned = ["4.37.0", "4.51.3", "4.57.6", "5.0.0rc1", "5.10.2", "5.10.4", "5.23.0", "5.24.0"]
    assert new_releases.newer(offered.split(), pinned) == found


def test_pip_is_asked_which_releases_there_are(root, new_releases, tmp_path):
    wheel(tmp_path, LORA, "0.10.0", LAYER)
    assert new_releases.on_the_index("peft") == ["0.10.0", "0.7", "0.6"]


def test_an_index_that_does_not_answer_is_an_error_and_no_sign_that_nothing_is_new(
    root, new_releases, monkeypatch, capsys
):
    monkeypatch.setenv("PIP_FIND_LINKS", str(root))
    monkeypatch.setattr("sys.argv", ["new_releases.py"])
    assert new_releases.main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "pip does not say which releases of peft there are: ERROR: No matching distribution" in said.err


def test_nothing_new_is_said(new_releases, monkeypatch, capsys):
    pinned = {"peft": LORA, "transformers": QWEN2}
    monkeypatch.setattr(
        new_releases, "on_the_index", lambda package: [each.version for each in TABLE.of(pinned[package].name)]
    )
    monkeypatch.setattr("sys.argv", ["new_releases.py"])
    assert new_releases.main() == 0
    newest = f"peft {TABLE.of(LORA.name)[-1].version} and transformers {TABLE.of(QWEN2.name)[-1].version}"
    assert capsys.readouterr().out == f"No new release: {newest} are pinned, and newest.\n"


def test_a_dry_run_names_the_releases_and_does_nothing(new_releases, monkeypatch, capsys):
    monkeypatch.setattr(new_releases, "on_the_index", lambda package: ["98.1", "99.0"])
    monkeypatch.setattr(new_releases, "run", Mock(side_effect=AssertionError))
    monkeypatch.setattr("sys.argv", ["new_releases.py", "--dry-run"])
    assert new_releases.main() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{package} {version} is new" for package in ("peft", "transformers") for version in ("98.1", "99.0")
    ]


def test_the_changelog_gets_its_heading_where_a_version_has_just_been_released(new_releases, tmp_path):
    page = tmp_path / "CHANGELOG.md"
    page.write_text("# Changelog\n\n## [Unreleased]\n\n## [1.0]\n\n### Added\n\n- All.\n")
    new_releases.changelog(page, "- more.\n")
    new_releases.changelog(page, "- most.\n")
    wanted = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- most.\n- more.\n\n## [1.0]\n\n### Added\n\n- All.\n"
    assert page.read_text() == wanted


def test_the_default_set_is_the_newest_pair_of_the_matrix(new_releases):
    rows = new_releases.matrix_pairs.read()
    transformers = max(rows, key=new_releases.Version)
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert f"\ntransformers=={transformers}\npeft=={max(rows[transformers], key=new_releases.Version)}\n" in text
