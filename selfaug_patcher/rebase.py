"""A patch for a release that no patch fits: what upstream changed, a three-way merge, and a diff of the edited file.

Bytes in, bytes out, but for `three_way`, which lets git merge: whoever maintains the patches has git, knows its
conflict markers, and has an editor that does, too.
"""

from __future__ import annotations

import ast
import difflib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .errors import PatcherError, Problem
from .pins import Target
from .udiff import apply, parse

# What a person has to read when upstream changes the file, because the patch leans on it.
READ = {
    "transformers:qwen2": (
        "Qwen2ForCausalLM",
        "Qwen2ForCausalLM.__init__",
        "Qwen2ForCausalLM.forward",
        "Qwen2Model.forward",
    ),
    "peft:lora": ("LoraLayer", "LoraLayer.__init__", "Linear.forward", "Embedding.forward"),
}
HEADERS = ("Subject", "Target", "Applies-To", "Calls", "Source", "Forwarded")
MAX_CONTEXT = 8


def changes(target: Target, before: bytes, after: bytes, labels: tuple[str, str]) -> str:
    """The unified diff of the functions in `READ`; empty if they are the same in both files."""
    texts: list[str] = []
    for name in READ[target.name]:
        old, new = (source(content, name).splitlines() for content in (before, after))
        texts += difflib.unified_diff(old, new, f"{labels[0]} {name}", f"{labels[1]} {name}", lineterm="", n=4)
    return "".join(line + "\n" for line in texts)


def source(content: bytes, name: str) -> str:
    """A function with its decorators, by dotted name; of a class, only the lines down to its first function."""
    text = content.decode("utf-8", "replace")
    lines = text.split("\n")
    nodes: list[ast.stmt] = ast.parse(text).body
    found: ast.ClassDef | ast.FunctionDef | None = None
    for part in name.split("."):
        kinds = (ast.ClassDef, ast.FunctionDef)
        found = next((node for node in nodes if isinstance(node, kinds) and node.name == part), None)
        if found is None:
            return ""
        nodes = found.body
    assert found is not None
    end = found.end_lineno or found.lineno
    if isinstance(found, ast.ClassDef):
        functions = [_start(node) for node in found.body if isinstance(node, ast.FunctionDef)]
        end = min([end, *(start - 1 for start in functions)])
    return "\n".join(lines[_start(found) - 1 : end]).rstrip() + "\n"


def _start(node: ast.ClassDef | ast.FunctionDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def three_way(stock: bytes, patched: bytes, new: bytes, labels: tuple[str, str, str]) -> tuple[bytes, int]:
    """``new`` with the change from ``stock`` to ``patched`` merged in, and the number of conflicts left as markers."""
    if not shutil.which("git"):
        do = f"install git, or copy the hunks by hand into the file of {labels[2]}"
        raise PatcherError(Problem("no-git", "git, which does the merge, is not installed", do=do))
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("ours", "base", "theirs")]
        for path, content in zip(paths, (patched, stock, new)):
            path.write_bytes(content)
        names = [word for label in (labels[1], labels[0], labels[2]) for word in ("-L", label)]
        command = ["git", "merge-file", "-p", "--diff3", *names, *map(str, paths)]
        result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode > 127:
        raise PatcherError(Problem("no-merge", "git could not merge", found=result.stderr.decode("utf-8", "replace")))
    return result.stdout, result.returncode


def unfinished(content: bytes) -> str:
    """Why an edited file cannot become a patch yet; empty if it can."""
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.startswith((b"<<<<<<< ", b"||||||| ", b">>>>>>> ")):
            return f"line {number} is a conflict marker"
    try:
        ast.parse(content)
    except (SyntaxError, ValueError) as error:
        return f"it does not compile: {error}"
    return ""


def write(headers: Mapping[str, str], body: str) -> str:
    """A patch file's text."""
    lines = [f"{name}: {headers[name]}\n" for name in HEADERS if name in headers]
    return "".join(lines) + "\n" + body


def body(target: Target, stock: bytes, edited: bytes) -> str:
    """The diff with the least context, from one line on, by which every hunk fits in one place only.

    Little context is what lets one patch serve many releases.
    """
    before, after = (content.decode().splitlines(keepends=True) for content in (stock, edited))
    refusal: PatcherError | None = None
    for context in range(1, MAX_CONTEXT + 1):
        diff = difflib.unified_diff(before, after, f"a/{target.path}", f"b/{target.path}", n=context)
        text = "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in diff)
        try:
            if apply(parse(text, "the diff"), stock) == edited:
                return text
        except PatcherError as error:
            refusal = error
    raise refusal or PatcherError(Problem("no-patch", "the edited file cannot be made into a patch"))
