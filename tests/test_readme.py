"""README.md and docs/ say what is so: generated blocks, settings, tree and test command are compared with sources.

python tests/test_readme.py      writes the generated blocks anew, in docs/installing.md and docs/releases.md
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SETTINGS = ROOT / "docs" / "settings.md"
INSTALLING = ROOT / "docs" / "installing.md"
RELEASES = ROOT / "docs" / "releases.md"
sys.path.insert(0, str(ROOT))

from selfaug_patcher import families, pins  # noqa: E402


def block(name: str, page: Path) -> str:
    """What the page has between the comments NAME and "end of NAME"."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)
    assert found, f"{page.name} has no block {name!r}"
    return found.group(1)


def seam(target: families.Target) -> str:
    """What goes into a file, with the names that it has there."""
    body = (ROOT / "patches" / f"{target.package}.seam").read_text(encoding="utf-8").split("\n\n", 1)[1]
    names = body.replace("CONFIGURATION", target.configuration).replace("CLASS", target.class_name)
    return "```diff\n" + names + "```\n"


def releases() -> str:
    """The pinned releases of the two packages, a line for each minor series."""
    rows = []
    for target in (families.MODELS[0], families.LAYER):
        final = [pin.version for pin in pins.load().of(target.name) if not pin.note]
        series = [list(group) for _, group in groupby(final, key=lambda version: version.split(".")[:2])]
        rows.append(f"**{target.package}**, {len(final)} releases from {final[0]} to {final[-1]}: ")
        rows[-1] += ", ".join(s[0] if len(s) == 1 else f"{s[0]}-{s[-1].split('.')[-1]}" for s in series) + ".\n"
    return "\n".join(rows)


def proved() -> str:
    """A line for each file, and how many releases are marked."""
    table = pins.load()
    lines = ["| file | releases | distinct files |", "|---|---:|---:|"]
    for target in (families.MODELS[0], families.LAYER):
        rows = table.of(target.name)
        lines.append(f"| `{target.path}` | {len(rows)}, {rows[0].version} to {rows[-1].version} | {files(rows)} |")
    withdrawn = dict.fromkeys(f"{pin.target.split(':')[0]} {pin.version}" for pin in table.pins if pin.note == "yanked")
    early = {(pin.target.split(":")[0], pin.version) for pin in table.pins if pin.note == "pre-release"}
    marked = f"{len(early)} release candidates and {len(withdrawn)} withdrawn releases, {', '.join(withdrawn)}"
    return "\n".join([*lines, "", f"Among them, and marked, because somebody has them: {marked}."]) + "\n"


def files(rows) -> int:
    return len({pin.stock_sha256 for pin in rows})


GENERATED = {
    "transformers seam": (INSTALLING, lambda: seam(families.MODELS[0])),
    "peft seam": (INSTALLING, lambda: seam(families.LAYER)),
    "releases": (RELEASES, releases),
    "proved": (RELEASES, proved),
}
REWRITE = "python tests/test_readme.py writes it anew"


def test_what_the_page_of_installing_shows_is_what_goes_into_the_files():
    assert block("transformers seam", INSTALLING) == seam(families.MODELS[0]), REWRITE
    assert block("peft seam", INSTALLING) == seam(families.LAYER), REWRITE


def test_the_releases_listed_are_those_pinned():
    assert block("releases", RELEASES) == releases(), REWRITE


def test_the_page_of_releases_has_every_file_and_the_counts():
    assert block("proved", RELEASES) == proved(), REWRITE


def test_every_setting_is_listed_with_its_default():
    from selfaug import config

    listed = dict(
        re.findall(r"^\| `(SELFAUG\w*)` \|.*\| (`[^`]*`|not set) \|$", block("settings", SETTINGS), re.MULTILINE)
    )
    assert set(listed) == set(config.ENVIRONMENT)
    defaults = {name: default.strip("`") for name, default in listed.items() if default != "not set"}
    assert config.read(None, defaults) == config.Settings()


def test_what_the_settings_page_sets_as_an_example_is_a_setting():
    from selfaug import config

    example = re.search(r"model\.config\.selfaug = (\{.*\})", SETTINGS.read_text(encoding="utf-8"))
    assert config.read(SimpleNamespace(selfaug=ast.literal_eval(example[1])), {}).alpha == 0.3


def test_a_page_that_begins_with_a_command_says_first_where_it_is_given():
    for page in (README, ROOT / "docs" / "index.md", ROOT / "docs" / "installing.md"):
        before = page.read_text(encoding="utf-8").split("    python ")[0]
        assert "From the root of a checkout of " in before, page


def test_the_test_command_names_the_python_that_its_transformers_needs():
    sys.path.insert(0, str(ROOT / "Code" / "examples" / "demo"))
    from sandbox import OLDEST_PYTHON

    needed = "Python {}.{} or newer, for transformers ".format(*OLDEST_PYTHON)
    pinned = re.search(r"^transformers==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert f"{needed}{pinned[1]}." in README.read_text(encoding="utf-8").split("## Tests")[1]


def test_every_file_and_link_that_is_named_exists():
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = design[design.index("## The tree") :]
    named = re.findall(r"^  (\w[\w./, ]*?)  +", tree[: tree.index("## Words")], re.MULTILINE)
    files = [name for entry in named for name in entry.split(", ")]
    assert len(files) > 8
    assert [name for name in files if not (ROOT / "Code" / name).exists()] == []


def test_what_a_reader_needs_first_is_on_the_first_screen():
    """What it does, one plot, the three commands, what it keeps and costs, and what is not shown."""
    screen = README.read_text(encoding="utf-8").split("\n## ")[0]
    assert len(screen.splitlines()) <= 30
    assert (screen.count("!["), screen.count("\n    python ")) == (1, 3)
    assert all(f"**What it {verb}" in screen for verb in ("does", "keeps", "costs"))
    assert "**What is not shown.**" in screen


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    for name, (page, make) in GENERATED.items():
        text = page.read_text(encoding="utf-8")
        page.write_text(
            text.replace(f"<!-- {name} -->\n{block(name, page)}", f"<!-- {name} -->\n{make()}"), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
