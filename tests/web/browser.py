"""Opens built pages in Chromium, from the file system and without a network."""

import shutil
import tarfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlparse

import pooch
from axe_playwright_python.sync_playwright import Axe

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
NOTEBOOKS = ROOT / "notebooks"
# The book's pages and the generated ones, but the first, which only leads to the book's.
PAGES = sorted(
    path.relative_to(HTML).as_posix() for path in [*HTML.glob("book/**/*.html"), *HTML.glob("?*.html")]
)
PAGES = [name for name in PAGES if name != "index.html"]
SETTLED_MS = 15_000  # how long a page may take to set its maths

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Formulas are set when they come near the window; a test wants to see them all.
SET_ALL_MATHS = """async () => {
  await window.MathJax?.startup.promise;
  await window.MathJax?.startup.document.lazyTypesetAll();
}"""
MATHS_IS_SET = (
    """() => [...document.querySelectorAll('.math')].every(f => f.querySelector('mjx-container svg'))"""
)

# What turned out too wide gets its tab stop a frame after a formula is set, and from the theme 0.3 s later.
TAB_STOPS_ARE_SET = """() => [...document.querySelectorAll(
    'article :is(mjx-container[display], pre, .pst-scrollable-table-container)')].every((e) =>
  e.scrollWidth <= e.clientWidth || e.tabIndex === 0 || getComputedStyle(e).overflowX !== 'auto')"""

# PyPI's copy is older, and lacks rules.
AXE = "axe-core-4.14.1.tgz"
FROM_NPM = pooch.create(
    path=pooch.os_cache("bnbook"),
    base_url="https://registry.npmjs.org/axe-core/-/",
    registry={AXE: "sha256:e6b0ce02b84d892e2e33e403485e7f3d6c29e2be6df65daf44d89ba564139745"},
    retry_if_failed=3,
)


@cache
def axe():
    """The newest axe, fetched once."""
    with tarfile.open(FROM_NPM.fetch(AXE)) as package:
        return Axe(package.extractfile("package/axe.min.js").read().decode())


def violations(page, context=None, **options):
    """What axe finds on a page or in a part of it: a report, empty if it finds nothing.

    Of what passes, it names one place a rule: to list them all takes half of its time.
    """
    results = axe().run(page, context, {"resultTypes": ["violations"], **options})
    return results.generate_report() if results.violations_count else ""


@contextmanager
def launched():
    """A running Chromium."""
    from playwright.sync_api import sync_playwright  # the unit tests do without it

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    assert path, f"none of {', '.join(names)} is installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opener(browser):
    """A function that opens a page; what it asked of other hosts and what went wrong is in `.faults`.

    The answers of predictions are open, unless a test wants them as a reader finds them. A folder that is
    served has an address: Chromium sometimes forgets what a page from the file system keeps.
    """
    contexts = []
    address = "http://book.test/"

    def open_page(name, width=1280, theme="light", java_script=True, maths=False, answers=True, served=None):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            offline=True,
            reduced_motion="reduce",
            java_script_enabled=java_script,
        )
        contexts.append(context)
        page = context.new_page()
        page.name, page.faults = name, []
        page.on("console", lambda m: m.type in ("error", "warning") and page.faults.append(m.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on(
            "request",
            lambda r: r.url.startswith(("file:", "data:", "blob:", address)) or page.faults.append(r.url),
        )
        # Leaving a page aborts what it is still loading; that is no fault.
        aborted = "net::ERR_ABORTED"
        page.on("requestfailed", lambda r: r.failure == aborted or page.faults.append(r.url))
        if served:
            page.route(
                f"{address}**",
                lambda route: route.fulfill(path=served / urlparse(route.request.url).path[1:]),
            )
        page.goto(address + name if served else (HTML / name).as_uri())
        if answers:
            page.evaluate("for (const a of document.querySelectorAll('.prediction-answer')) a.open = true")
        if maths:
            page.evaluate(SET_ALL_MATHS)
            page.wait_for_function(MATHS_IS_SET, timeout=SETTLED_MS)
            page.wait_for_function(TAB_STOPS_ARE_SET, timeout=SETTLED_MS)
        return page

    yield open_page
    for context in contexts:
        context.close()
