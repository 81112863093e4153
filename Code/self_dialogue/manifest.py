"""``FILE.manifest.json`` beside an output file: everything that went into the file, so that it can be made again."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..toolkit.errors import Refusal
from ..toolkit.files import read_json, sha256

PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "datasketch", "datasets")


def path_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.manifest.json")


def write(file: Path, facts: Mapping[str, Any]) -> Path:
    """Write the manifest of ``file``, which must exist."""
    path = path_of(file)
    content = {
        "selfaug": __version__,
        **facts,
        "file": {"name": file.name, "sha256": sha256(file)},
        "versions": {"python": platform.python_version(), **_versions()},
    }
    temporary = path.with_name(f".{path.name}.new")
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # file names may hold any bytes
    temporary.replace(path)
    return path


def read(file: Path) -> dict[str, Any]:
    """The manifest of ``file``; empty if there is none, or if the manifest cannot be read."""
    try:
        content = read_json(path_of(file))
    except (OSError, Refusal):
        return {}
    return content if isinstance(content, dict) else {}


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
