"""The lines that SelfAug puts into a file, and where: read from ``patches/``, placed by the syntax tree.

The rule is the same for both seams. A class of that name, the only one at the top level of the module, gets one more
base class, first in line, between two lines of SelfAug's. A seam with an import has it on the line below the module's
import of its configuration. All other bytes of the file stay, and `remove` gives the stock file back.

Of the syntax tree only line numbers are used, so that every version of Python places a seam in the same way.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from .errors import UNSUPPORTED, PatcherError, Problem
from .families import Target

MAX_FILE_BYTES = 1024 * 1024

_ADDED = r"(?:\+[ -~]*\n)"  # ASCII, so that the added lines are the same bytes whatever a file's encoding is
_FORM = re.compile(
    r"(?:[A-Z][\w-]*: .+\n)+\n"
    rf"(?: from \.CONFIGURATION import \.\.\.\n(?P<import>{_ADDED}+)@@\n)?"
    rf"(?P<before>{_ADDED}+)"
    r"-class CLASS\(\.\.\.\):\n\+class CLASS\((?P<base>[A-Za-z_]\w*), \.\.\.\):\n"
    rf"(?P<after>{_ADDED}+)"
)
_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Seam:
    """Lines to add, each without its line end.

    Args:
        base: the base class.
        imports: what follows the import of the configuration; empty where the file needs no such import.
        before: what stands before the class statement.
        after: what stands after the class statement.
    """

    base: str
    imports: tuple[bytes, ...]
    before: tuple[bytes, ...]
    after: tuple[bytes, ...]


def parse(text: str, name: str) -> Seam:
    """Read the text of a file in ``patches/``.

    Raises:
        PatcherError: the text has another form, or the lines are no Python.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise _bad(name, "headers, and a diff of `class CLASS(...):` with ASCII lines", f"{text[:60]!r}...")
    imports, before, after = ([line[1:] for line in (match[part] or "").splitlines()] for part in _PARTS)
    try:
        ast.parse("\n".join([*imports, *before, f"class CLASS({match['base']}, object):", *after, " pass"]))
    except (SyntaxError, ValueError) as error:
        raise _bad(name, "lines of Python", str(error)) from None
    for lines in (before, after, *([imports] if imports else [])):
        if "SelfAug" not in lines[0]:
            raise _bad(name, "lines that say whose they are", lines[0])
    as_bytes = (tuple(line.encode() for line in lines) for lines in (imports, before, after))
    return Seam(match["base"], *as_bytes)


_PARTS = ("import", "before", "after")


@functools.lru_cache(maxsize=256)  # more than there are families; each file is asked about several times in a run
def place(seam: Seam, target: Target, stock: bytes) -> bytes:
    """The stock file with the seam in it.

    Raises:
        PatcherError: the file has no place for the seam, or more than one.
    """
    if len(stock) > MAX_FILE_BYTES:
        raise _no_place(target, f"a source file of at most {MAX_FILE_BYTES} bytes", f"{len(stock)} bytes")
    if b"selfaug" in stock.lower():
        number = stock[: stock.lower().index(b"selfaug")].count(b"\n") + 1
        raise _no_place(target, "a stock file", f"the word selfaug in line {number}")
    tree = _tree(target, stock)
    nodes = list(ast.walk(tree))
    lines = _LINE.findall(stock)
    for class_ in [_class(seam, target, name, tree, nodes) for name in class_names(target, stock)]:
        first, last = class_.lineno - 1, _last_line_of_statement(target, lines, class_.lineno - 1)
        lines[last] += _ended(seam.after, lines[last])
        lines[first] = _ended(seam.before, lines[first]) + _with_base(seam, target, class_.name, lines[first])
        where = tree.body.index(class_)
        tree.body[where:where] = _tree(target, b"\n".join(seam.before)).body
        class_.bases.insert(0, ast.Name(seam.base, ast.Load()))
    if seam.imports:
        anchor = _configuration(target, tree, nodes)
        lines[(anchor.end_lineno or anchor.lineno) - 1] += _ended(seam.imports, lines[anchor.lineno - 1])
        where = tree.body.index(anchor) + 1
        tree.body[where:where] = _tree(target, b"\n".join(seam.imports)).body
    patched = b"".join(lines)
    if ast.dump(_tree(target, patched)) != ast.dump(tree) or _without(seam, target, patched) != stock:
        what = "the import and the class on lines of their own"
        raise _no_place(target, what, "a file that would become another program, or could not be restored")
    return patched


@functools.lru_cache(maxsize=256)
def class_names(target: Target, stock: bytes) -> tuple[str, ...]:
    """The classes of a target that get the seam in this file: the first, and others with a head of their own."""
    first, *others = target.class_names
    classes = (
        {node.name: node for node in _tree(target, stock).body if isinstance(node, ast.ClassDef)} if others else {}
    )
    return (first, *(name for name in others if name in classes and _has_head(classes[name])))


def _has_head(class_: ast.ClassDef) -> bool:
    stored = (node for node in ast.walk(class_) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    return any(node.attr == "lm_head" for node in stored)


@functools.lru_cache(maxsize=256)
def remove(seam: Seam, target: Target, patched: bytes) -> bytes:
    """The stock file of a file that `place` has made.

    Raises:
        PatcherError: this is not such a file.
    """
    stock = _without(seam, target, patched)
    if stock is None or place(seam, target, stock) != patched:
        raise _no_place(target, "a file with this seam in it", "another file")
    return stock


def _without(seam: Seam, target: Target, patched: bytes) -> bytes | None:
    """The file without the lines of the seam; None where they are not there, as often as a class has the base class."""
    lines = _LINE.findall(patched)
    inserted = f"{seam.base}, ".encode()
    openings = [f"class {name}(".encode() for name in target.class_names]
    with_base = [opening for line in lines for opening in openings if line.startswith(opening + inserted)]
    if not with_base or len(set(with_base)) < len(with_base):
        return None
    for added in filter(None, (seam.after, seam.before, seam.imports)):
        texts = [line.rstrip(b"\r\n") for line in lines]
        places = [
            at for at, text in enumerate(texts) if text == added[0] and tuple(texts[at : at + len(added)]) == added
        ]
        if len(places) != (1 if added == seam.imports else len(with_base)):
            return None
        for at in reversed(places):
            del lines[at : at + len(added)]
    for opening in with_base:
        (at,) = [at for at, line in enumerate(lines) if line.startswith(opening + inserted)]
        lines[at] = opening + lines[at][len(opening + inserted) :]
    return b"".join(lines)


def _with_base(seam: Seam, target: Target, name: str, line: bytes) -> bytes:
    opening = f"class {name}(".encode()
    if not line.startswith(opening):
        raise _no_place(target, f"a line that begins with {opening.decode()}", repr(line[:60])[1:])
    return opening + f"{seam.base}, ".encode() + line[len(opening) :]


def _ended(added: Sequence[bytes], beside: bytes) -> bytes:
    """Lines with the line end of the line beside them."""
    end = beside[len(beside.rstrip(b"\r\n")) :] or b"\n"
    return b"".join(line + end for line in added)


def _last_line_of_statement(target: Target, lines: Sequence[bytes], start: int) -> int:
    """The index of the line on which the class statement that begins at index ``start`` has its colon."""
    rest = io.BytesIO(b"".join(re.sub(rb"\r\n?", b"\n", line) for line in lines[start:]))
    try:
        newline = next(token for token in tokenize.tokenize(rest.readline) if token.type == tokenize.NEWLINE)
    except (SyntaxError, tokenize.TokenError, StopIteration) as error:
        raise _no_place(target, "Python in UTF-8", str(error)) from None
    return start + newline.end[0] - 1


def _class(seam: Seam, target: Target, name: str, tree: ast.Module, nodes: Sequence[ast.AST]) -> ast.ClassDef:
    """The class statement, where the name of the class means nothing else in this file."""
    named, ours = _bindings(nodes, name), _bindings(nodes, seam.base)
    at_top = [node for node in named if node in tree.body and isinstance(node, ast.ClassDef)]
    if len(named) != 1 or not at_top:
        raise _no_place(target, f"one class {name}, at the top level", _lines_of(named))
    if ours:
        raise _no_place(target, f"no {seam.base} in a stock file", _lines_of(ours))
    (class_,) = at_top
    assert isinstance(class_, ast.ClassDef)
    if class_.decorator_list and _tree(target, b"\n".join(seam.before)).body:
        raise _no_place(target, f"a class {name} without a decorator", _lines_of(class_.decorator_list))
    return class_


def _configuration(target: Target, tree: ast.Module, nodes: Sequence[ast.AST]) -> ast.ImportFrom:
    """The import that the import of the seam follows."""
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    anchors = [node for node in imports if (node.level, node.module) == (1, target.configuration)]
    if len(anchors) != 1 or anchors[0] not in tree.body:
        raise _no_place(target, f"one `from .{target.configuration} import`, at the top level", _lines_of(anchors))
    return anchors[0]


def _bindings(nodes: Sequence[ast.AST], name: str) -> list[ast.AST]:
    """Every statement or expression among the nodes of a module that gives this name a meaning."""
    found: list[ast.AST] = []
    for node in nodes:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            bound = [node.name]
        elif isinstance(node, ast.Name):
            bound = [] if isinstance(node.ctx, ast.Load) else [node.id]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound = [alias.asname or alias.name.split(".")[0] for alias in node.names]
        else:
            continue
        if name in bound:
            found.append(node)
    return found


def _tree(target: Target, text: bytes) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in stock files
            tree = ast.parse(text)
            compile(tree, target.path, "exec", dont_inherit=True)  # sees a `return` outside a function, say
            return tree
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _no_place(target, "Python that this interpreter can read", str(error)[:200]) from None


def _lines_of(nodes: Sequence[ast.AST]) -> str:
    numbers = [str(getattr(node, "lineno", "?")) for node in nodes]
    return f"line{'s' * (len(numbers) > 1)} {' and '.join(numbers)}" if numbers else "none"


def _no_place(target: Target, expected: str, actual: str) -> PatcherError:
    what = f"SelfAug's lines have no place in {target.path}"
    do = "take a pinned release: python -m selfaug_patcher pins"
    return PatcherError(Problem("no-seam", what, expected, actual, do, UNSUPPORTED))


def _bad(name: str, expected: str, actual: str) -> PatcherError:
    do = "take the patches/ folder from a fresh checkout of SelfAug"
    return PatcherError(Problem("bad-patch", f"{name} is not a seam", expected, actual, do))
