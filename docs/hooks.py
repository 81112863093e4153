"""What mkdocs needs beside the pages. They are written for a forge, where a link may name any file of the repository
or a folder; on the site each such file becomes a page that shows it, each folder a page that lists it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
CHANGELOG = "changelog.md"  # on the site; CHANGELOG.md lies in the root
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".patch": "diff", ".diff": "diff", ".md": "markdown"}
LINK = re.compile(r"(?<=\]\()[^)#\s]+")
OUT_OF_SEARCH = "---\nsearch:\n  exclude: true\n---\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the changelog, and a page for each file and folder that a page links to and that is none."""
    files.append(File.generated(config, CHANGELOG, content=(ROOT / "CHANGELOG.md").read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        for address in LINK.findall(page.content_string):
            target = _target(address, page.src_uri)
            shown = target and _shown(target)
            if shown and files.get_file_from_path(shown) is None:
                files.append(File.generated(config, shown, content=_as_page(target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point each link at what the site has in its place."""

    def replaced(match: re.Match[str]) -> str:
        target = _target(match[0], page.file.src_uri)
        return os.path.relpath(_shown(target), os.path.dirname(page.file.src_uri) or ".") if target else match[0]

    return LINK.sub(replaced, markdown) if not page.file.src_uri.startswith("source/") else markdown


def _target(address: str, src_uri: str) -> Path | None:
    """The file or folder that a link on a page means; None for other addresses, and for what is not there."""
    if ":" in address:
        return None
    target = ((ROOT if src_uri == CHANGELOG else (DOCS / src_uri).parent) / address).resolve()
    return target if target.exists() and ROOT in target.parents else None


def _shown(target: Path) -> str:
    """Which file of the site shows a file or folder of the repository."""
    if target == ROOT / "CHANGELOG.md":
        return CHANGELOG
    if DOCS not in target.parents:
        return f"source/{target.relative_to(ROOT).as_posix()}.md"
    inside = target.relative_to(DOCS).as_posix()
    return f"{inside}/index.md" if target.is_dir() else inside


def _as_page(target: Path) -> str:
    title = f"{OUT_OF_SEARCH}# {target.relative_to(ROOT).as_posix()}\n\n"
    if target.is_dir():
        names = sorted(path.name for path in target.iterdir() if path.is_file())
        return title + "".join(f"- [{name}]({name})\n" if DOCS in target.parents else f"- {name}\n" for name in names)
    text = target.read_text(encoding="utf-8").rstrip("\n")
    return f"{title}~~~~~~~~~~ {LANGUAGES.get(target.suffix, 'text')}\n{text}\n~~~~~~~~~~\n"
