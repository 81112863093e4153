"""Records which steps are done, so that a second run continues where the first stopped."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[3]))  # the checkout, for Code.toolkit

from Code.toolkit.files import parse_json

OTHERS = {"toolkit", "self_dialogue", "retention", "trial", "benchmarks", "examples"}  # no training step imports these


def runtime_files(code: Path) -> list[Path]:
    """The modules that a training with SelfAug may import. ``code``: the folder Code/ of the checkout."""
    return [file for file in code.rglob("*.py") if file.relative_to(code).parts[0] not in OTHERS]


def tool_files(code: Path, tool: str) -> list[Path]:
    """The modules of self_dialogue or retention, and those of the toolkit, which both import."""
    return [*(code / tool).rglob("*.py"), *(code / "toolkit").rglob("*.py")]


class Journal:
    """Fingerprints of finished steps, in a JSON file.

    The fingerprint of a step covers its settings, the text of the files that it runs, and the steps before. If any of
    them changes, the step and all later steps run again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.chain = ""
        self.entries: dict[str, dict[str, Any]] = {}
        try:
            entries = parse_json(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        if isinstance(entries, dict) and all(isinstance(facts, dict) for facts in entries.values()):
            self.entries = entries

    def begin(self, name: str, settings: object, sources: Iterable[Path] = ()) -> bool:
        """Whether the step has to run. False if it is done with the same settings, after the same steps."""
        texts = [file.read_bytes() for file in sorted(sources)]
        given = json.dumps([self.chain, name, settings], sort_keys=True, default=str).encode()
        self.chain = hashlib.sha256(b"\0".join([given, *texts])).hexdigest()
        if self.entries.get(name, {}).get("fingerprint") == self.chain:
            return False
        self.entries.pop(name, None)
        self.save()
        return True

    def finish(self, name: str, **facts: object) -> None:
        """Record that the step which :meth:`begin` began is done, with facts for later runs."""
        self.entries[name] = {"fingerprint": self.chain, **facts}
        self.save()

    def facts(self, name: str) -> dict[str, Any]:
        return self.entries[name]

    def save(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")
        new.replace(self.file)
