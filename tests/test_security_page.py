"""Each promise of SECURITY.md names tests, and they exist; CITATION.cff and the issue forms say what they should."""

from __future__ import annotations

import ast
import re

import pages
import pytest
from pages import ROOT


def test_every_promise_names_a_test_and_every_test_that_is_named_exists():
    rows = re.findall(
        r"^\| (.+?) \| (`tests/.+`) \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    table = [line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(rows) == len(table) - 1 > 8
    for promise, named in rows:
        for file, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", named):
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, promise


def test_the_citation_names_the_paper():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    (paper,) = citation["references"]
    assert "2509.03934" in paper["url"]
    readme = re.search(r"@inproceedings\{(.*?)\n\}", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert paper["title"] == re.search(r"title += \{(.*)\},", readme)[1].replace("{", "").replace("}", "")
    assert all(author.get("family-names", author.get("name")) in readme for author in paper["authors"])


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_an_issue_form_asks_for_the_status_as_json(form):
    yaml = pytest.importorskip("yaml")
    folder = ROOT / ".github" / "ISSUE_TEMPLATE"
    content = yaml.safe_load((folder / f"{form}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(content)
    (status,) = [field for field in content["body"] if "status --json" in field["attributes"]["label"]]
    assert form != "bug" or status["validations"]["required"] is True
    assert yaml.safe_load((folder / "config.yml").read_text(encoding="utf-8"))["blank_issues_enabled"] is True


def test_the_pages_of_the_root_lead_to_files_that_are_there():
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"):
        for _, address in pages.links(page):
            path, _, fragment = address.partition("#")
            assert "://" in address or (ROOT / path).is_file(), address
            assert not fragment or fragment in pages.anchors(ROOT / path), address
