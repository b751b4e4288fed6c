"""Open the built site in a real browser and see that it works.

    mkdocs build --strict && python docs/browser_check.py [--site site] [--shots DIR]

Needs playwright from PyPI, and Debian's chromium or `playwright install chromium`. It
checks that

- every page opens without an error on its console and without a request to another host;
- every link inside the site leads to a page, and every fragment to a place on it;
- no page scrolls sideways at the width of a phone;
- searching for ``weight_decay`` finds pages;
- the copy button of a cell copies what one types, without prompts and output.

It saves screenshots: wide and at a phone's width, light and dark.
"""

import argparse
import functools
import http.server
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

from playwright.sync_api import Browser, Page, sync_playwright

SHOTS = ("index", "start", "shape", "chain", "coming", "gallery", "number", "api/decay")
PHONE, WIDE = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that does not log what it served."""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@contextmanager
def served(site: Path) -> Iterator[str]:
    """The site on a free port of this machine."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def watched(browser: Browser, root: str, problems: list[str], **options: object) -> Page:
    """A page that reports errors and requests to other hosts."""
    page = browser.new_page(**options)  # type: ignore[arg-type]

    def request(sent) -> None:
        if not sent.url.startswith((root, "data:", "blob:")):
            problems.append(f"{page.url}: asks another host for {sent.url}")

    def console(message) -> None:
        if message.type in ("error", "warning"):
            problems.append(f"{page.url}: {message.type} on the console: {message.text}")

    def response(got) -> None:
        if got.status >= 400:
            problems.append(f"{page.url}: {got.status} for {got.url}")

    page.on("request", request)
    page.on("console", console)
    page.on("response", response)
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
    return page


def addresses(site: Path, root: str) -> list[str]:
    """The address of every page."""
    pages = sorted(site.rglob("index.html"))
    return [
        urljoin(root, str(p.relative_to(site)).removesuffix("index.html")) for p in pages
    ]


def check_pages(page: Page, root: str, pages: list[str], problems: list[str]) -> int:
    """Open every page; then see that all links inside the site lead somewhere."""
    places: dict[str, set[str]] = {}
    links: list[tuple[str, str]] = []
    for address in pages:
        page.goto(address, wait_until="networkidle")
        places[address] = set(
            page.evaluate("[...document.querySelectorAll('[id]')].map(x => x.id)")
        )
        hrefs = page.evaluate("[...document.querySelectorAll('a[href]')].map(x => x.href)")
        links += [(address, href) for href in hrefs if href.startswith(root)]
        broken = page.evaluate(
            "[...document.images].filter(x => !x.naturalWidth).map(x => x.src)"
        )
        problems += [f"{address}: no picture {source}" for source in broken]
    for address, href in links:
        to, fragment = urldefrag(href)
        if to.endswith((".png", ".xml")):
            continue
        if to not in places:
            problems.append(f"{address}: a link to {href}, which is no page")
        elif (
            fragment
            and not fragment.startswith("__")
            and unquote(fragment) not in places[to]
        ):
            problems.append(f"{address}: a link to {href}, where nothing has that name")
    return len(links)


def check_width(page: Page, pages: list[str], problems: list[str]) -> None:
    """No page scrolls sideways; wide tables and code do so by themselves."""
    for address in pages:
        page.goto(address)
        wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        if wide > 0:
            problems.append(f"{address}: {wide} pixels too wide for a phone")


def check_search(page: Page, root: str, problems: list[str]) -> int:
    """What a reader finds who types `weight_decay`."""
    page.goto(root, wait_until="networkidle")
    page.locator(".md-search__input").click()
    page.keyboard.type("weight_decay")
    results = page.locator(".md-search-result__item")
    try:
        results.first.wait_for(timeout=30_000)
    except Exception:
        problems.append("search finds nothing for weight_decay")
        return 0
    found = results.count()
    results.first.locator("a").first.click()
    page.wait_for_load_state("networkidle")
    if page.url == root:
        problems.append("the first result of the search leads nowhere")
    return found


def check_copy(page: Page, root: str, problems: list[str]) -> None:
    """What the copy button of the first cell of Start puts on the clipboard."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(urljoin(root, "start/"), wait_until="networkidle")
    page.locator(".language-pycon").first.hover()
    page.locator(".language-pycon button").first.click()
    page.locator(".md-dialog--active").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    if not copied.startswith("import jax") or ">>>" in copied or "True" in copied:
        problems.append(f"the copy button copies {copied!r}")


def main() -> None:
    """Check, print, and fail if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=Path("site"))
    parser.add_argument("--shots", type=Path, default=Path("out/shots"))
    options = parser.parse_args()
    # Debian's, if it is there; else the one of `playwright install chromium`.
    executable = shutil.which("chromium")
    options.shots.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    with served(options.site) as root, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox"]
        )
        pages = addresses(options.site, root)
        links = check_pages(
            watched(browser, root, problems, viewport=WIDE), root, pages, problems
        )
        check_width(watched(browser, root, problems, viewport=PHONE), pages, problems)
        found = check_search(
            watched(browser, root, problems, viewport=WIDE), root, problems
        )
        check_copy(watched(browser, root, problems, viewport=WIDE), root, problems)
        for scheme in ("light", "dark"):
            for name, viewport in (("wide", WIDE), ("phone", PHONE)):
                page = watched(
                    browser, root, problems, viewport=viewport, color_scheme=scheme
                )
                for shot in SHOTS:
                    page.goto(urljoin(root, "" if shot == "index" else f"{shot}/"))
                    page.wait_for_load_state("networkidle")
                    picture = f"{shot.replace('/', '_')}_{name}_{scheme}.png"
                    page.screenshot(path=options.shots / picture)
        browser.close()
    print(f"{len(pages)} pages, {links} links, {found} results for weight_decay.")
    print(*problems, sep="\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
