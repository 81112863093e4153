"""Which steps of the demo are done, so that a second run goes on where the first stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path


class Journal:
    """Fingerprints of finished steps, in a JSON file.

    A step's fingerprint covers its settings, the text of the files that it runs, and the steps before it: whatever
    changes, that step and all later ones run again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.chain = ""
        try:
            self.entries: dict[str, dict] = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            self.entries = {}

    def begin(self, name: str, settings: object, sources: Iterable[Path] = ()) -> bool:
        """Whether the step has to run; False if it is done, with these settings and after these steps."""
        texts = [file.read_bytes() for file in sorted(sources)]
        given = json.dumps([self.chain, name, settings], sort_keys=True, default=str).encode()
        self.chain = hashlib.sha256(b"\0".join([given, *texts])).hexdigest()
        if self.entries.get(name, {}).get("fingerprint") == self.chain:
            return False
        self.entries.pop(name, None)
        self.save()
        return True

    def finish(self, name: str, **facts: object) -> None:
        """Record the step that :meth:`begin` began as done, with facts for later runs."""
        self.entries[name] = {"fingerprint": self.chain, **facts}
        self.save()

    def facts(self, name: str) -> dict:
        return self.entries[name]

    def save(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.entries, indent=1), encoding="utf-8")
        new.replace(self.file)
