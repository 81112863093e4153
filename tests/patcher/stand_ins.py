"""Environments to patch: real virtual environments with small stand-ins for transformers and peft in them, and a pin
table and seams for those. What decides is always the content's hash, so that nothing here is less strict than with
the real files; the real ones are in test_real_environments.py.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from snapshots import snapshot

from selfaug_patcher import cli, environment, families, payload, pins, seam

MODEL = "transformers/models/qwen2/modeling_qwen2.py"
LAYER = "peft/tuners/lora/layer.py"

MODEL_TEXT = """from .configuration_{family} import {stem}Config

RELEASE = "{version}"


class {name}({stem}Config):
    def forward(self):
        return "stock"
"""
# A second family, which SelfAug knows in tests only.
OTHER = families.model("other", "OtherForCausalLM", "1.0")
TWO = (families.MODELS[0], OTHER)
LAYER_TEXT = """class BaseTunerLayer:
    _disable_adapters = False


class LoraLayer(BaseTunerLayer):
    release = "{version}"
"""
SEAMS = {
    "transformers.seam": """Subject: a stand-in

 from .CONFIGURATION import ...
+from selfaug.hooks import SelfAligned  # SelfAug{mark}
@@
+# >>> SelfAug
-class CLASS(...):
+class CLASS(SelfAligned, ...):
+# <<< SelfAug
""",
    "peft.seam": """Subject: a stand-in

+# >>> SelfAug{mark}
+try:
+    from selfaug.hooks import ReferenceSwitch
+except ImportError:
+    class ReferenceSwitch: ...
-class CLASS(...):
+class CLASS(ReferenceSwitch, ...):
+# <<< SelfAug
""",
}
CODE = {
    "__init__.py": '__version__ = "{version}"\n',
    "hooks.py": (
        "from .kit.part import PART\nfrom .step import VERSION\n\n\n"
        'class SelfAligned:\n    release = "{version}"\n    step = VERSION\n    part = PART\n\n\n'
        "class ReferenceSwitch:\n    selfaug_reference = False\n"
    ),
    "step.py": 'VERSION = "{version}"\n',
    "kit/__init__.py": "",
    "kit/__main__.py": "from .part import PART\n\nprint('kit', PART)\n",
    "kit/part.py": 'PART = "{version}"\n',
    "trial/__init__.py": "",
    "trial/__main__.py": (
        "import sys\n"
        "from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM\n"
        'if "--json" in sys.argv:\n'
        '    print(\'{{"name": "stand-in", "ok": true, "expected": "", "found": "{version}"}}\')\n'
        'print(\'{{"case": "as stock: forward", "sha256": "\' + Qwen2ForCausalLM().forward() + \'"}}\')\n'
        "print('{{\"done\": true}}')\n"
    ),
    "update_module.py": "raise SystemExit('not part of the runtime')\n",
    "examples/train.py": "raise SystemExit('in no package, so not part of the runtime')\n",
    "kit/notes.txt": "no module, so not part of the runtime\n",
    "kit/deeper/__init__.py": "raise SystemExit('too deep to be part of the runtime')\n",
}
RELEASES = ("1.0", "1.1", "2.0")


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def data(self) -> dict:
        return json.loads(self.out)


@dataclass
class Release:
    """A SelfAug: its patches and its runtime."""

    patches: Path
    code: Path

    def setup(self, python: str):
        return environment.discover(python), pins.load(self.patches), payload.load(self.code)


@dataclass
class Place:
    """A virtual environment, and the command line applied to it."""

    root: Path
    selfaug: Release

    @property
    def python(self) -> str:
        return str(self.root / "bin" / "python")

    @property
    def site(self) -> Path:
        return next(self.root.glob("lib/python*/site-packages"))

    @property
    def model(self) -> Path:
        return self.site / MODEL

    @property
    def layer(self) -> Path:
        return self.site / LAYER

    def run(self, *arguments: str, selfaug: Release | None = None, python: str | None = None) -> Result:
        release = selfaug or self.selfaug
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = cli.main([*arguments, "--python", python or self.python], release.patches, release.code)
            except SystemExit as exit:
                code = exit.code
        return Result(code, out.getvalue(), err.getvalue())

    def done(self, *arguments: str, **options) -> Result:
        result = self.run(*arguments, **options)
        assert result.code == 0, result.out + result.err
        return result

    def status(self, **options) -> dict:
        return self.run("status", "--json", **options).data

    def states(self, **options) -> tuple[str, str, str]:
        data = self.status(**options)
        return (*(target["state"] for target in data["targets"]), data["runtime"]["state"])

    def snapshot(self) -> dict:
        return snapshot(self.site)


def package_files(name: str, version: str, models: Sequence[families.Target] = TWO) -> dict[str, str]:
    if name == "transformers":
        files = {"transformers/__init__.py": f'__version__ = "{version}"\n', "transformers/models/__init__.py": ""}
        for target in models:
            folder, stem = target.path.rpartition("/")[0], target.class_name.partition("For")[0]
            words = {"version": version, "family": target.family, "name": target.class_name, "stem": stem}
            files[f"{folder}/__init__.py"] = ""
            files[f"{folder}/{target.configuration}.py"] = f"class {stem}Config:\n    pass\n"
            files[target.path] = MODEL_TEXT.format(**words)
        return files
    return {
        "peft/__init__.py": f'__version__ = "{version}"\n',
        "peft/tuners/__init__.py": "",
        "peft/tuners/lora/__init__.py": "",
        LAYER: LAYER_TEXT.format(version=version),
    }


def put_package(
    site: Path, name: str, version: str, installer: str = "pip", change=lambda text: text, models=TWO
) -> None:
    """What pip leaves behind: the package, and its metadata with RECORD. ``change``: of the file that gets patched."""
    info = f"{name}-{version}.dist-info"
    files = package_files(name, version, models)
    target = MODEL if name == "transformers" else LAYER
    files[target] = change(files[target])
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files[f"{info}/INSTALLER"] = f"{installer}\n"
    record = [f"{path},sha256={_urlsafe(text)},{len(text)}\n" for path, text in files.items()]
    files[f"{info}/RECORD"] = "".join(record) + f"{info}/RECORD,,\n"
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, newline="\n")


def forget_record(site: Path, name: str) -> None:
    """Remove the list of files, which tells whether pip installed a file: then nothing speaks for an unpinned one."""
    (record,) = site.glob(f"{name}-*.dist-info/RECORD")
    record.unlink()


def _urlsafe(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def make_release(root: Path, version: str, releases: tuple[str, ...] = RELEASES, mark: str = "", models=TWO) -> Release:
    """A SelfAug of this version. ``mark`` is something that its seams write and those of other versions do not."""
    folder = root / "patches"
    folder.mkdir(parents=True)
    for name, text in SEAMS.items():
        (folder / name).write_text(text.format(mark=mark))
    seams = {name[: -len(".seam")]: seam.parse((folder / name).read_text(), name) for name in SEAMS}
    rows = []
    for target, release in itertools.product(families.targets(), releases):
        if target.path in (present := package_files(target.package, release, models)):
            stock = present[target.path].encode()
            patched = seam.place(seams[target.package], target, stock)
            hashes = (hashlib.sha256(stock).hexdigest(), hashlib.sha256(patched).hexdigest())
            rows.append(pins.Pin(target.name, release, *hashes))
    (folder / "pins.txt").write_text(pins.render(rows))
    for name, text in CODE.items():
        (root / "Code" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "Code" / name).write_text(text.format(version=version))
    return Release(folder, root / "Code")


def make_newer_release(root: Path, **options) -> Release:
    """A later SelfAug with other patches and another runtime: one module less, and another package."""
    release = make_release(root, "0.2.0", mark="  # 0.2", **options)
    (release.code / "hooks.py").write_text(
        'from .tools.step import PART\n\n\nclass SelfAligned:\n    release = step = "0.2.0"\n    part = PART\n\n\n'
        "class ReferenceSwitch:\n    selfaug_reference = False\n"
    )
    (release.code / "step.py").unlink()
    (release.code / "kit").rename(release.code / "tools")
    (release.code / "tools" / "part.py").rename(release.code / "tools" / "step.py")
    return release
