"""The built site as a reader sees it, in headless Chromium on a phone and on a desk: no broken link or anchor, no
missing figure, nothing wider than the screen, nothing fetched from elsewhere.

    python tests/site/browser.py build/site [--screenshots DIR]      what `nox -s site` runs

Says so and does nothing where there is no Chromium.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTHS = {"phone": (390, 844), "desk": (1280, 900)}
ON_PAGE = """() => ({
    ids: [...document.querySelectorAll('[id]')].map(element => element.id),
    links: [...document.querySelectorAll('a[href]')].map(link => link.href),
    missing: [...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src),
    width: document.documentElement.clientWidth,
    needed: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll('article *')]
        .filter(element => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest(
            'pre, .md-typeset__scrollwrap'))
        .map(element => element.tagName + ' ' + element.textContent.slice(0, 60)),
})"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(site: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


class Visit:
    """All pages at one width: what is wrong, and which ids and links there are."""

    def __init__(self, browser, root: str, name: str, screenshots: Path | None) -> None:
        self.root, self.name, self.screenshots = root, name, screenshots
        self.wrong: list[str] = []
        self.ids: dict[str, set[str]] = {}
        self.links: dict[str, set[str]] = {}
        width, height = WIDTHS[name]
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="light" if name == "desk" else "dark"
        )
        self.page = self.context.new_page()
        self.at = ""
        self.page.on("request", lambda request: self.see_request(request.url))
        self.page.on("response", lambda answer: answer.status >= 400 and self.say(f"{answer.status} {answer.url}"))
        self.page.on("console", lambda line: line.type == "error" and self.say(f"console: {line.text}"))
        self.page.on("pageerror", lambda error: self.say(f"script: {error}"))

    def say(self, text: str) -> None:
        self.wrong.append(f"{self.name:6}{self.at}: {text}")

    def see_request(self, url: str) -> None:
        if not url.startswith((self.root, "data:", "blob:")):
            self.say(f"fetches {url}")

    def go(self, path: str) -> None:
        self.at = path
        self.page.goto(self.root + path, wait_until="networkidle")
        seen = self.page.evaluate(ON_PAGE)
        self.ids[path], self.links[path] = set(seen["ids"]), set(seen["links"])
        for image in seen["missing"]:
            self.say(f"no figure: {image}")
        if seen["needed"] > seen["width"]:
            self.say(f"{seen['needed']} pixels wide on a screen of {seen['width']}")
        for element in seen["wide"]:
            self.say(f"beyond the edge: {element}")
        if self.screenshots:
            name = f"{path.removesuffix('.html').replace('/', '-')}-{self.name}.png"
            self.page.screenshot(path=self.screenshots / name, full_page=True)

    def check_links(self, site: Path) -> None:
        for path, links in self.links.items():
            self.at = path
            for link in sorted(links):
                parts = urlsplit(link)
                if not link.startswith(self.root):
                    continue
                target = unquote(parts.path).lstrip("/") or "index.html"
                if not (site / target).is_file():
                    self.say(f"broken link: {target}")
                elif parts.fragment and unquote(parts.fragment) not in self.ids.get(target, {parts.fragment}):
                    self.say(f"no anchor: {target}#{parts.fragment}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder that mkdocs has built")
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="save a picture of every page at every width")
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if chromium is None:
        names = ", ".join(CHROMIUM)
        print(f"The site was NOT looked at in a browser: none of {names} is on the path.")
        print("NOT proved by this run: the pages (apt-get install chromium, then nox -s site)")
        return 0
    from playwright.sync_api import sync_playwright

    if options.screenshots:
        options.screenshots.mkdir(parents=True, exist_ok=True)
    names = sorted(path.relative_to(options.site).as_posix() for path in options.site.rglob("*.html"))
    wrong, links = [], 0
    with served(options.site) as root, sync_playwright() as playwright:
        sandbox = [] if hasattr(os, "geteuid") and os.geteuid() else ["--no-sandbox"]  # root has to go without
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        for name in WIDTHS:
            visit = Visit(browser, root, name, options.screenshots)
            for path in names:
                visit.go(path)
            visit.check_links(options.site)
            visit.context.close()
            wrong += visit.wrong
            links += sum(map(len, visit.links.values()))
        browser.close()
    print("\n".join([*wrong, f"{len(names)} pages at {len(WIDTHS)} widths, {links} links: {len(wrong)} wrong"]))
    return 1 if wrong or not names else 0


if __name__ == "__main__":
    sys.exit(main())
