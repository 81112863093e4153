"""The project's Markdown pages, read as a forge reads them: their commands, links and anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("bash", "sh", "shell", "console")
PROGRAMS = ("python", "python3", "pip", "nox", "torchrun", "accelerate", "lm_eval", "cd")


@dataclass(frozen=True)
class Block:
    """A code block: where it begins, its language ("" if indented or bare), its text."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """One simple command of a page, in words, with the folder that it runs in and the variables set for it.

    prose: it stands within a sentence, where a program may be named without what it is given.
    """

    page: str
    line: int
    words: tuple[str, ...]
    folder: str = "."
    variables: tuple[tuple[str, str], ...] = ()
    prose: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {' '.join(self.words)}"


def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> Iterator[Block]:
    for token in tokens(page):
        if token.type in ("code_block", "fence"):
            first = token.map[0] + (2 if token.type == "fence" else 1)
            yield Block(str(page.relative_to(ROOT)), first, token.info.strip(), token.content)


def spans(page: Path) -> Iterator[tuple[int, str]]:
    """Code within prose and tables, with the line that its paragraph begins on."""
    for token in tokens(page):
        for child in token.children or ():
            if child.type == "code_inline":
                yield token.map[0] + 1, child.content


def is_command(line: str) -> bool:
    """Whether a line of a shell block begins with a program, or with variables that are set for one."""
    word = next((word for word in line.split() if word not in ("$", "RUN") and not assignment(word)), "")
    return word.rsplit("/", 1)[-1] in PROGRAMS


def assignment(word: str) -> bool:
    return re.match(r"[A-Z][A-Z0-9_]*=", word) is not None


def lines(block: Block) -> Iterator[tuple[int, str]]:
    """The lines of a block with their numbers; one that ends in a backslash and the next are one."""
    begun, first = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        first = first if begun else number
        if line.endswith("\\"):
            begun += line[:-1]
        else:
            yield first, begun + line
            begun = ""


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page: of its shell blocks, and in prose wherever a program is given arguments."""
    for block in blocks(page):
        if block.language in ("", *SHELLS):
            for number, line in lines(block):
                if is_command(line) and (block.language != "console" or line.startswith("$ ")):
                    yield from simple(block.page, number, line)
    for number, text in spans(page):
        if is_command(text) and len(text.split()) > 1:
            for command in simple(str(page.relative_to(ROOT)), number, text):
                yield replace(command, prose=True)


def simple(page: str, number: int, line: str) -> Iterator[Command]:
    """The simple commands of a line of shell."""
    folder, words = ".", shlex.split(re.sub(r"^(\$|RUN) ", "", line.strip()), comments=True)
    while words:
        end = words.index("&&") if "&&" in words else len(words)
        part, words = words[:end], words[end + 1 :]
        variables = []
        while assignment(part[0]):
            variables.append(tuple(part.pop(0).split("=", 1)))
        if part[0] == "cd":
            folder = part[1]
        else:
            yield Command(page, number, tuple(part), folder, tuple(variables))


def links(page: Path) -> Iterator[tuple[int, str]]:
    """Addresses of a page's links and images, with the line that their paragraph begins on."""
    for token in tokens(page):
        here = token.map[0] + 1 if token.map else 0
        for child in token.children or ():
            for name in ("href", "src"):
                if child.type in ("link_open", "image") and name in child.attrs:
                    yield here, str(child.attrs[name])
        for piece in [token, *(token.children or ())]:
            if piece.type in ("html_block", "html_inline"):
                for address in re.findall(r'(?:href|src|srcset)="([^"]+)"', piece.content):
                    yield here, address


def anchors(page: Path) -> set[str]:
    """What a fragment of a link to the page may be: its headings as a forge turns them into ids."""
    found: list[str] = []
    every = tokens(page)
    for opening, inside in zip(every, every[1:]):
        if opening.type == "heading_open":
            text = "".join(child.content for child in inside.children or ())
            name = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            found.append(name if name not in found else f"{name}-{found.count(name)}")
    return set(found)
