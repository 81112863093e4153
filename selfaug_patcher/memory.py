"""Modules served from memory: an import hook that replaces the source of named modules, and writes nothing.

A module's file stays where it is and keeps its name (tracebacks, ``inspect`` and transformers' own reading of source
paths go on working); only the text that Python loads is another. This file imports nothing of selfaug_patcher, since
child processes, whose interpreter may not have it, run this file as plain text.
"""

from __future__ import annotations

import base64
import importlib.abc
import importlib.machinery
import importlib.util
import json
import linecache
import os
import sys
from collections.abc import Mapping, Sequence
from types import CodeType, ModuleType
from typing import Any


class Loader(importlib.abc.InspectLoader):
    """Loads one module from a text, under the file name that it has on disk."""

    def __init__(self, path: str, text: bytes) -> None:
        self.path = path
        self.text = text

    def get_filename(self, fullname: str) -> str:
        return self.path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self.text)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.text, self.path)

    def is_package(self, fullname: str) -> bool:
        return False

    def exec_module(self, module: ModuleType) -> None:
        lines = self.get_source(module.__name__).splitlines(keepends=True)
        linecache.cache[self.path] = (len(self.text), None, lines, self.path)  # None: not compared with the disk
        super().exec_module(module)


class _NothingWritten(importlib.machinery.SourceFileLoader):
    """Loads a module from its file, and leaves no bytecode beside it."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        return None


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of ``sources`` ({name: (path, text)}) and the packages of ``packages`` ({name: folder})."""

    def __init__(self, sources: Mapping[str, tuple[str, bytes]], packages: Mapping[str, str]) -> None:
        self.sources = sources
        self.packages = packages

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in self.sources:
            file, text = self.sources[fullname]
            return importlib.util.spec_from_file_location(fullname, file, loader=Loader(file, text))
        package, _, module = fullname.partition(".")
        if package in self.packages:
            place = os.path.join(self.packages[package], *filter(None, module.split(".")))
            for file, search in ((os.path.join(place, "__init__.py"), [place]), (f"{place}.py", None)):
                if os.path.isfile(file):
                    loader = _NothingWritten(fullname, file)
                    return importlib.util.spec_from_file_location(
                        fullname, file, loader=loader, submodule_search_locations=search
                    )
        return None


def install(sources: Mapping[str, tuple[str, bytes]], packages: Mapping[str, str]) -> Finder:
    """Serve these modules in this process from now on. Modules that are loaded already stay as they are."""
    finder = Finder(sources, packages)
    sys.meta_path.insert(0, finder)
    return finder


def encode(sources: Mapping[str, tuple[str, bytes]], packages: Mapping[str, str]) -> str:
    """The same as a text that `decode` reads in another process."""
    texts = {name: [path, base64.b64encode(text).decode("ascii")] for name, (path, text) in sources.items()}
    return json.dumps({"sources": texts, "packages": dict(packages)})


def decode(text: str) -> tuple[dict[str, tuple[str, bytes]], dict[str, str]]:
    data: Any = json.loads(text)
    sources = {name: (path, base64.b64decode(source)) for name, (path, source) in data["sources"].items()}
    return sources, data["packages"]
