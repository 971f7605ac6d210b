"""The built pages, opened from the file system in Chromium without a network: `make test-web`."""

import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright

from bookbuild.results import chapters

HTML = Path(__file__).resolve().parents[1] / "_build" / "html"
PAGES = [*sorted(path.relative_to(HTML).as_posix() for path in HTML.glob("book/*.html")), "search.html"]
CHAPTERS = [f"book/{path.stem}.html" for path in chapters()]
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
# Every formula of the text has been replaced by its drawing.
MATHS_IS_SET = (
    """() => [...document.querySelectorAll('.math')].every(f => f.querySelector('mjx-container'))"""
)


@pytest.fixture(scope="module")
def chromium():
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    assert path, f"none of {', '.join(names)} is installed"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Open a page offline; what it asked of other hosts and what went wrong is collected in `.faults`."""
    contexts = []

    def open_page(name, width=1280, theme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            offline=True,
            reduced_motion="reduce",
        )
        contexts.append(context)
        page = context.new_page()
        page.faults = []
        page.on("console", lambda m: m.type in ("error", "warning") and page.faults.append(m.text))
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:")) or page.faults.append(r.url))
        page.on("requestfailed", lambda request: page.faults.append(request.url))
        page.goto((HTML / name).as_uri())
        page.wait_for_function(MATHS_IS_SET, timeout=SETTLED_MS)
        return page

    yield open_page
    for context in contexts:
        context.close()


def test_the_book_was_built():
    assert set(CHAPTERS) < set(PAGES), "run `make book` first"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_a_network_without_a_fault(open_page, name):
    page = open_page(name)
    assert page.faults == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_shows_its_maths_and_its_figures(open_page, name):
    page = open_page(name)
    assert page.locator("mjx-container svg").count() > 10
    figures = page.locator("figure img")
    assert figures.count() >= 4
    for image in figures.all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
        assert len(image.get_attribute("alt")) > 40


@pytest.mark.parametrize("name", PAGES)
def test_a_page_does_not_scroll_sideways_on_a_phone(open_page, name):
    page = open_page(name, width=375)
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.faults == []


def test_the_search_finds_a_word_of_the_text_without_a_network(open_page):
    page = open_page("search.html")
    page.goto((HTML / "search.html").as_uri() + "?q=whiten")
    page.locator("#search-results ul.search li").first.wait_for(timeout=SETTLED_MS)
    assert "batch_norm" in page.locator("#search-results ul.search").inner_html()
    assert page.faults == []


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_one_search_box(open_page, name):
    page = open_page(name)
    buttons = page.locator(".search-button__button:visible, .search-button-field:visible")
    assert buttons.count() == 1


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing(open_page, name, theme, width):
    page = open_page(name, width, theme)
    assert page.locator("html").get_attribute("data-theme") == theme
    results = Axe().run(page)
    assert not results.response["violations"], results.generate_report()


@pytest.mark.parametrize("name", PAGES)
def test_every_internal_link_leads_somewhere(name):
    ids: dict[Path, set[str]] = {}
    base = (HTML / name).as_uri()
    for link in BeautifulSoup((HTML / name).read_text("utf-8"), "html.parser").select("a[href]"):
        target, fragment = urldefrag(urljoin(base, link["href"]))
        if not target.startswith("file:"):
            continue
        path = Path(unquote(re.sub("^file://", "", target)))
        assert path.is_file(), link["href"]
        if path not in ids:
            ids[path] = {
                tag["id"] for tag in BeautifulSoup(path.read_text("utf-8"), "html.parser").select("[id]")
            }
        assert not fragment or unquote(fragment) in ids[path], link["href"]
