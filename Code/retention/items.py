"""The figures of every single prompt of one model, in one file, with keys that tell which figures are still valid."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..toolkit.errors import Refusal
from ..toolkit.files import read_json

FORMAT = 1  # raised when the definition of a figure changes, so that everything is measured again
GENERAL, TASK, PROBES = "general", "task", "probes"
# section, which is measured at once -> its rows (general, task or probes), and its columns
SECTIONS = {
    "answers": (GENERAL, ("prompt", "answer", "length", "ended", "list", "one_word", "ids")),
    "drift": (GENERAL, ("kl", "reverse_kl", "top1", "base_nll", "nll", "tokens", "kl_by_position")),
    "scores": (TASK, ("answer", "exact_match", "contains", "f1")),
    "input": (TASK, ("input_kl", "input_top1")),
    "probes": (PROBES, ("probe", "prompt", "answer", "figures")),
}


def key(*parts: Any) -> str:
    """A hash of everything that the figures of a section depend on."""
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True, default=str).encode()).hexdigest()


class Items:
    """``FILE``: {"keys": {section: key}, "general": [{…}, one per instruction], "task": [{…}, one per question],
    "probes": [{…}, one per probe]}.

    A section that an earlier run measured with the same key is not measured again.

    Raises:
        Refusal: the file has a section that this version does not know. To measure again would lose its figures.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.keys: dict[str, str] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {GENERAL: [], TASK: [], PROBES: []}
        try:
            content = read_json(file)
            content = {PROBES: [], **content}  # files from before there were probes hold none
            keys, rows = dict(content["keys"]), {name: list(map(dict, content[name])) for name in self.rows}
            self.keys, self.rows = keys, rows
        except (OSError, Refusal, ValueError, KeyError, TypeError):
            pass  # the file is missing or is not ours: measure everything
        unknown = [section for section in self.keys if section not in SECTIONS]
        if unknown:
            what, do = f"{file} has an unknown section", "use the version that wrote it, or another --out"
            raise Refusal("unknown-section", what, ", ".join(SECTIONS), ", ".join(unknown), do)

    def has(self, section: str, key: str) -> bool:
        """Whether the section was measured with this key."""
        return self.keys.get(section) == key

    def put(self, section: str, key: str, rows: Sequence[dict[str, Any]]) -> None:
        """Replace the section's columns and write the file."""
        name, _ = SECTIONS[section]
        if len(self.rows[name]) != len(rows):
            self.drop(name)
            self.rows[name] = [{} for _ in rows]
        for row, figures in zip(self.rows[name], rows):
            row.update(figures)
        self.keys[section] = key
        self.write()

    def keep(self, keys: dict[str, str]) -> None:
        """Drop the sections that are not in ``keys``, or have another key."""
        for section in [name for name, known in self.keys.items() if keys.get(name) != known]:
            del self.keys[section]
            name, columns = SECTIONS[section]
            for row in self.rows[name]:
                for column in columns:
                    row.pop(column, None)
        for name in self.rows:
            if not any(SECTIONS[section][0] == name for section in self.keys):
                self.rows[name] = []

    def drop(self, name: str) -> None:
        """Drop all rows of ``name`` (general, task or probes) and their sections."""
        self.keys = {section: known for section, known in self.keys.items() if SECTIONS[section][0] != name}
        self.rows[name] = []

    def write(self) -> None:
        """Write the file, one line per row, and put it in place as a whole."""
        parts = [f'"keys": {json.dumps(self.keys)}']
        for name, rows in self.rows.items():
            lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            parts.append(f'"{name}": [\n{lines}\n]')
        temporary = self.file.with_name(f".{self.file.name}.new")
        temporary.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")
        temporary.replace(self.file)
