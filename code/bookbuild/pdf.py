"""Print the book: ``python -m bookbuild.pdf`` after `make book`.

The built pages are joined into one, in the order of the book, and Chromium prints it. So the PDF has the
text, numbers, formulas and figures of the pages, and what links from page to page links within the PDF.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import urldefrag

from bs4 import BeautifulSoup, Tag
from playwright.sync_api import sync_playwright

from bookbuild.results import ROOT, name_of, parts

HTML = ROOT / "_build" / "html"
PDF = ROOT / "_build" / "pdf" / "batch-normalization-measured.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MINUTES = 15  # how long the browser may take to set all formulas, on a slow machine

SCREEN_ONLY = (
    "script, .headerlink, details.hide, .sd-summary-icon, .prediction-answer > summary, .prediction-tally"
)
STYLE = """
  h1, .part { break-before: page; }
  .part { font-size: 1.5rem; }
  .part + section > section > h1 { break-before: avoid; }
  .bd-article { max-width: none; padding: 0; }
  figure img { max-width: 28rem !important; }
  summary { list-style: none; }
"""  # besides what book.css has for paper
ALL_IS_SHOWN = """async () => {
  await MathJax.startup.promise;
  await MathJax.startup.document.lazyTypesetAll();
  await Promise.all([...document.images].map((image) => image.decode()));
}"""
FOOTER = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'


def printed_pages() -> dict[str, list[str]]:
    """Names of all pages by the captions of their parts; the front page has none."""
    pages = {caption: [f"book/{name_of(page)}" for page in part] for caption, part in parts().items()}
    return {"": ["book/index"]} | pages


def joined(html: Path, pages: dict[str, list[str]]) -> str:
    """The pages as one.

    Parameters
    ----------
    html : Path
        Folder of the built pages.
    pages : dict
        Names of pages ("book/sgd") by the captions of their parts, in the order in which they are printed.

    Returns
    -------
    str
        HTML that belongs into `html`. An id "x" of page "book/sgd" is "book/sgd:x", and links to it follow.
    """
    names = [name for part in pages.values() for name in part]
    first = BeautifulSoup((html / f"{names[0]}.html").read_text("utf-8"), "html.parser")
    mathjax = [script for script in first.select("script") if "MathJax" in str(script.string)]
    mathjax += first.select('script[src*="mathjax"]')
    head = [*first.select('link[rel="stylesheet"]'), *mathjax]
    body: list[str] = []
    for caption, part in pages.items():
        if caption:
            body.append(f'<p class="part">{caption}</p>')
        body += [str(_article(html, name, names)) for name in part]
    for tag in head:
        for key in ("href", "src"):
            if key in tag.attrs:
                tag[key] = re.sub(r"^(\.\./)+", "", str(tag[key]))
    title = first.select_one('meta[property="og:site_name"]')
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en" data-theme="light"><head><meta charset="utf-8">',
            f"<title>{title['content'] if title else ''}</title>",
            *map(str, head),
            f'<style>{STYLE}</style></head><body><main class="bd-article">',
            *body,
            "</main></body></html>",
        ]
    )


def _article(html: Path, name: str, names: list[str]) -> Tag:
    """The text of one page, with its ids and addresses as the joined page needs them."""
    page = BeautifulSoup((html / f"{name}.html").read_text("utf-8"), "html.parser")
    article = page.select_one("article.bd-article")
    if article is None:
        raise ValueError(f"{name}.html: got a page without an article; run `make book`")
    for tag in article.select(SCREEN_ONLY):
        tag.decompose()
    for fold in article.select("details"):
        fold["open"] = ""
    for tag in article.select("[id]"):
        tag["id"] = f"{name}:{tag['id']}"
    for image in article.select("img[src]"):
        image["src"] = _from_root(name, str(image["src"]))
        image["loading"] = "eager"
    for link in article.select("a[href]"):
        address, fragment = urldefrag(str(link["href"]))
        if ":" in address:  # another site
            continue
        target = _from_root(name, address).removesuffix(".html") if address else name
        if target in names:
            link["href"] = f"#{target}:{fragment}" if fragment else f"#{target}"
        else:
            del link["href"]  # a file beside the pages
    article.name = "section"
    article["id"] = name
    del article["class"]
    return article


def _from_root(name: str, address: str) -> str:
    """An address on the page `name`, as the folder of all pages sees it."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), address))


def main() -> int:
    """Print the book; returns 1, with what to do, if something is missing."""
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        print(f"The PDF needs a browser: install one of {', '.join(BROWSERS)}.", file=sys.stderr)
        return 1
    pages = printed_pages()
    missing = [name for part in pages.values() for name in part if not (HTML / f"{name}.html").exists()]
    if missing:
        print(f"{missing[0]}.html is not built yet: run `make pdf`, which builds it.", file=sys.stderr)
        return 1
    PDF.parent.mkdir(parents=True, exist_ok=True)
    part_file = PDF.with_suffix(".part")
    source = HTML / "printed.html"
    source.write_text(joined(HTML, pages), "utf-8")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
            page = browser.new_page(color_scheme="light")
            page.set_default_timeout(MINUTES * 60_000)
            page.goto(source.as_uri())
            page.evaluate(ALL_IS_SHOWN)
            page.pdf(
                path=part_file,
                format="A4",
                scale=0.75,  # text of 9 points
                margin={"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"},
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=FOOTER,
                outline=True,
                tagged=True,
            )
            browser.close()
    finally:
        source.unlink()
    part_file.replace(PDF)
    print(f"{PDF} ({PDF.stat().st_size / 1e6:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
