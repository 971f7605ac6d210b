"""Opens built pages in Chromium, from the file system and without a network."""

import shutil
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "html"
NOTEBOOKS = ROOT / "notebooks"
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

    The answers of predictions are open, unless a test wants them as a reader finds them.
    """
    contexts = []

    def open_page(name, width=1280, theme="light", java_script=True, maths=False, answers=True):
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            offline=True,
            reduced_motion="reduce",
            java_script_enabled=java_script,
        )
        contexts.append(context)
        page = context.new_page()
        page.faults = []
        page.on("console", lambda m: m.type in ("error", "warning") and page.faults.append(m.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on(
            "request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or page.faults.append(r.url)
        )
        # Leaving a page aborts what it is still loading; that is no fault.
        aborted = "net::ERR_ABORTED"
        page.on("requestfailed", lambda r: r.failure == aborted or page.faults.append(r.url))
        page.goto((HTML / name).as_uri())
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
