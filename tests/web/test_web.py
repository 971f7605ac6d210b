"""The built pages, opened from the file system in Chromium without a network: `make test-web`."""

import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import numpy as np
import pytest
from browser import HTML, PAGES, SETTLED_MS, violations
from bs4 import BeautifulSoup
from PIL import Image
from playwright.sync_api import expect

from bookbuild.pdf import joined, printed_pages
from bookbuild.portable import labels
from bookbuild.results import chapters, name_of

CHAPTERS = [f"book/{name_of(path)}.html" for path in chapters() if path.stem != "field_guide"]


def test_the_book_was_built():
    assert set(CHAPTERS) < set(PAGES), "run `make book` first"


def test_a_page_opens_without_a_network_without_a_fault(wide):
    assert wide.faults == []
    assert wide.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_page_has_one_search_box(wide):
    buttons = wide.locator(".search-button__button:visible, .search-button-field:visible")
    assert buttons.count() == 1


def test_a_chapter_shows_its_maths_and_a_page_its_figures(wide):
    is_chapter = wide.name in CHAPTERS
    assert not is_chapter or "/deeper/" in wide.name or wide.locator("mjx-container svg").count() > 0
    figures = wide.locator("figure img")
    assert not is_chapter or figures.count() > 0
    for image in figures.all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
        assert len(image.get_attribute("alt")) > 40


def test_notebooks_number_equations_figures_and_exercises_as_the_pages_do():
    pages = [BeautifulSoup((HTML / name).read_text("utf-8"), "html.parser") for name in PAGES]
    number = {}
    for page in pages:
        for place in page.select("[id]"):
            shown = place.select_one(".eqno, .caption-number, .admonition-title")
            if shown:
                number[place["id"].removeprefix("equation-")] = shown.get_text()
    names = labels().names
    assert len(names) > 300
    wrong = {
        label: name for label, name in names.items() if name.split()[-1].strip("()") not in number[label]
    }
    assert wrong == {}


@pytest.mark.parametrize("name", CHAPTERS)
def test_images_are_light_and_keep_their_place(name):
    images = BeautifulSoup((HTML / name).read_text("utf-8"), "html.parser").select("article figure img")
    assert images
    for image in images:
        assert image["src"].endswith(".webp")
        assert image["loading"] == "lazy"
        with Image.open((HTML / name).parent / image["src"]) as picture:
            assert (int(image["width"]), int(image["height"])) == picture.size


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_offers_its_notebook_and_describes_itself(name):
    page = BeautifulSoup((HTML / name).read_text("utf-8"), "html.parser")
    link = page.select_one('.article-header-buttons a[href$=".ipynb"]')
    notebook = ((HTML / name).parent / link["href"]).resolve()
    assert notebook.relative_to(HTML / "notebooks").with_suffix("") == Path(name).relative_to(
        "book"
    ).with_suffix("")
    assert '"image/png"' in notebook.read_text("utf-8")  # it shows its figures before it is run
    about = page.select_one('meta[name="description"]')["content"]
    assert about == page.select_one('meta[property="og:description"]')["content"]
    assert about.endswith("?")


def test_a_figure_offers_its_number_to_cite(open_page):
    page = open_page("book/backward.html")
    figure = page.locator("#fig-bwd-graph")
    button, shown = figure.locator("button.cite"), figure.locator(".citation")
    assert shown.is_hidden()
    button.press("Enter")
    reference = shown.inner_text()
    assert reference.startswith(figure.locator(".caption-number").inner_text().strip() + " of “")
    title = page.locator('meta[name="citation_title"]').get_attribute("content")
    assert f"“{title}”, in: Batch Normalization, Measured, 20" in reference
    assert "fig-bwd-graph" in reference
    assert "file:" not in reference
    button.press("Enter")
    assert shown.is_hidden()
    assert page.locator("figure:has(.caption-number)").count() == page.locator("button.cite").count()


def test_formulas_are_set_when_they_come_near_the_window(open_page):
    page = open_page("book/backward.html")
    page.evaluate("MathJax.startup.promise")
    formulas = page.locator(".math")
    last = formulas.nth(formulas.count() - 1)
    assert last.locator("svg").count() == 0
    last.scroll_into_view_if_needed()
    last.locator("svg").first.wait_for(timeout=SETTLED_MS)


def test_the_formulas_that_scroll_and_no_others_can_be_scrolled_with_the_keyboard(open_page):
    page = open_page("book/backward.html", width=375, maths=True)
    wide = """[...document.querySelectorAll("mjx-container")].filter((formula) =>
      formula.scrollWidth > formula.clientWidth && getComputedStyle(formula).overflowX === "auto").length"""
    assert page.locator("mjx-container[tabindex='0']").count() == page.evaluate(wide) > 3
    assert page.locator("span.math[tabindex]").count() == 0


def test_a_page_does_not_scroll_sideways_on_a_phone(phone):
    assert phone.evaluate("document.documentElement.scrollWidth") <= 375
    assert phone.faults == []
    cut_off = phone.evaluate(
        """() => {
          const scrolls = (e) => e !== document.documentElement
            && (/auto|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
          const outside = (e) => e.getBoundingClientRect().right > innerWidth + 1;
          return [...document.querySelectorAll("main :is(p, a, h1, h2, h3, li, dt, figcaption, button)")]
            .filter((e) => e.checkVisibility() && outside(e) && !scrolls(e))
            .map((e) => e.outerHTML.slice(0, 80));
        }"""
    )
    assert cut_off == []


@pytest.mark.parametrize("name", ["book/backward.html", "book/index.html", "book/claims.html"])
def test_the_keyboard_alone_reaches_all_that_can_be_used_and_one_sees_where_it_is(open_page, name):
    page = open_page(name, maths=True)
    unseen = []
    for _ in range(1000):
        page.keyboard.press("Tab")
        at = page.evaluate(
            """() => {
              const element = document.activeElement;
              // The ring of a card is around it, in what stands behind its link.
              const styles = [null, "::after"].map((part) => getComputedStyle(element, part));
              if (element === document.body || element.dataset.reached) return null;
              element.dataset.reached = true;
              const ring = styles.some((s) => s.outlineStyle !== "none" || s.boxShadow !== "none");
              return [ring && element.getBoundingClientRect().width > 0, element.outerHTML.slice(0, 80)];
            }"""
        )
        if at is None:
            break
        if not at[0]:
            unseen.append(at[1])
    assert unseen == []
    # Of a group of radio buttons, Tab reaches one; the arrows reach the others.
    left = page.evaluate(
        """() => [...document.querySelectorAll("a[href], button, summary, input, [tabindex='0']")]
          .filter((e) => !e.dataset.reached && !e.matches(":disabled"))
          .filter((e) => e.checkVisibility({ visibilityProperty: true }))
          .filter((e) => e.type !== "radio" || !e.form.querySelector("[type=radio][data-reached]"))
          .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert left == []


def test_the_search_finds_a_word_of_the_text_without_a_network(open_page):
    page = open_page("search.html")
    page.goto((HTML / "search.html").as_uri() + "?q=whiten")
    page.locator('#search-results a[href*="batch_norm.html"]').first.wait_for(timeout=SETTLED_MS)
    assert page.faults == []


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("eps outside the root", "batch_norm.html#claim-bn-eps-place"),
        ("gradient penalty", "field_guide.html#"),
        ("SyncBatchNorm", "api.html#bnbook.distributed.SyncBatchNorm"),
    ],
)
def test_the_search_ranks_headings_and_claims_before_passing_mentions(open_page, query, first):
    page = open_page("search.html")
    page.goto((HTML / "search.html").as_uri() + f"?q={query.replace(' ', '+')}")
    results = page.locator("#search-results ul.search > li > a")
    results.first.wait_for(timeout=SETTLED_MS)
    assert first in results.first.get_attribute("href")
    assert page.faults == []


def test_over_a_symbol_stands_what_it_means_until_it_is_left_or_dismissed(open_page):
    page = open_page("book/batch_norm.html", maths=True)
    tip = page.locator(".symbol-tip")
    gamma = page.locator('mjx-container [data-mml-node="mi"]:has([data-c="1D6FE"])').first
    variance = page.locator('mjx-container [data-mml-node="msubsup"]:has([data-c="1D70E"])').first
    for symbol, meaning in ((gamma, "learned scale"), (variance, "biased variance")):
        symbol.hover(force=True)
        assert meaning in tip.inner_text()
        page.keyboard.press("Escape")
        assert tip.is_hidden()
    gamma.hover(force=True)
    page.mouse.move(2, 2)
    assert tip.is_hidden()
    gamma.click(force=True)  # as a finger does
    assert tip.is_visible()
    assert page.faults == []


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_figures_are_as_dark_as_their_page_and_photographs_as_they_are(open_page, theme, dark):
    page = open_page("book/covariate_shift.html", theme=theme)

    def lightness(selector):
        image = page.locator(selector).first
        image.scroll_into_view_if_needed()
        page.wait_for_function("image => image.complete", arg=image.element_handle())
        with Image.open(BytesIO(image.screenshot())) as picture:
            return np.median(np.asarray(picture.convert("L"))) / 255

    assert (lightness("#fig-shift-cost img") < 0.2) == dark
    assert (lightness("#fig-shift-cost img") > 0.9) != dark
    photo = page.locator("#fig-shift-examples img").first
    assert photo.evaluate("image => getComputedStyle(image).filter").startswith("invert") is False


# Colours differ by theme, structure by width: all rules in a wide window, colours again in the dark, and all
# but contrast, which takes most of axe's time, on a phone.
def test_axe_finds_nothing(wide):
    assert not violations(wide)


def test_axe_finds_nothing_in_the_dark(wide):
    colours = ["color-contrast", "link-in-text-block"]
    wide.emulate_media(color_scheme="dark")
    try:
        expect(wide.locator("html")).to_have_attribute("data-theme", "dark")
        assert not violations(wide, runOnly={"type": "rule", "values": colours})
    finally:
        wide.emulate_media(color_scheme="light")
        expect(wide.locator("html")).to_have_attribute("data-theme", "light")


def test_axe_finds_nothing_on_a_phone(phone):
    assert not violations(phone, rules={"color-contrast": {"enabled": False}})


def test_a_button_changes_the_theme(open_page):
    page = open_page("book/start.html")
    page.locator("button.theme-switch-button:visible").click()
    assert page.locator("html").get_attribute("data-theme") == "dark"


class Anchors(HTMLParser):
    """Where the links of a page lead, and the places in it that a link can name."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids = set(), set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.add(found["href"])


anchors = cache(Anchors)


@pytest.mark.parametrize("name", PAGES)
def test_every_internal_link_leads_somewhere(name):
    base = (HTML / name).as_uri()
    links = anchors(HTML / name).links
    assert len(links) > 40  # those of the sidebar alone
    for link in links:
        target, fragment = urldefrag(urljoin(base, link))
        if not target.startswith("file:"):
            continue
        path = Path(unquote(re.sub("^file://", "", target)))
        assert path.is_file(), link
        assert not fragment or unquote(fragment) in anchors(path).ids, link


def test_every_link_of_the_printed_book_leads_to_one_place_in_it():
    book = BeautifulSoup(joined(HTML, printed_pages()), "html.parser")
    places = Counter(tag["id"] for tag in book.select("[id]"))
    links = {link["href"].removeprefix("#") for link in book.select('a[href^="#"]')}
    assert len(links) > 500
    assert {link: places[link] for link in links if places[link] != 1} == {}
    assert all((HTML / image["src"]).is_file() for image in book.select("img"))
