"""Links and images between the Markdown pages: what they name is there. The site itself: tests/site/browser.py."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pages
import pytest

EVERY = [*pages.PAGES, pages.ROOT / "CHANGELOG.md"]


@pytest.mark.parametrize("page", EVERY, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_every_fragment_to_a_heading(page):
    broken = []
    for line, address in pages.links(page):
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if not target.exists() or pages.ROOT not in [target, *target.parents]:
            broken.append(f"line {line}: {address}: no such file")
        elif parts.fragment and parts.fragment not in pages.anchors(target):
            broken.append(f"line {line}: {address}: no such heading; there are {sorted(pages.anchors(target))}")
    assert broken == []


def test_every_page_can_be_reached_from_the_index():
    docs = pages.ROOT / "docs"
    there = {address.split("#")[0] for _, address in pages.links(docs / "index.md")}
    assert {page.name for page in docs.glob("*.md")} - there == {"index.md"}
