"""Print the book: ``python -m bookbuild.pdf`` after ``jupyter-book build . --builder singlehtml``.

The PDF comes from the same sources as the pages: the whole book as one page, printed by Chromium.
"""

from __future__ import annotations

import shutil
import sys

from playwright.sync_api import sync_playwright

from bookbuild.results import ROOT

PAGE = ROOT / "_build" / "singlehtml" / "index.html"
PDF = ROOT / "_build" / "pdf" / "batch-normalization-measured.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MINUTES = 15  # how long the browser may take to set all formulas, on a slow machine

ALL_IS_SHOWN = """async () => {
  await MathJax.startup.promise;
  await MathJax.startup.document.lazyTypesetAll();
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => undefined)));
  for (const claims of document.querySelectorAll(".claims-table details")) claims.open = true;
}"""
FOOTER = '<div style="font-size: 8px; width: 100%; text-align: center"><span class="pageNumber"></span></div>'


def main() -> int:
    """Print the page; returns 1, with what to do, if something is missing."""
    browser_path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser_path is None:
        print(f"The PDF needs a browser: install one of {', '.join(BROWSERS)}.", file=sys.stderr)
        return 1
    if not PAGE.exists():
        print(f"{PAGE.relative_to(ROOT)} is not there yet: run `make pdf`, which makes it.", file=sys.stderr)
        return 1
    PDF.parent.mkdir(parents=True, exist_ok=True)
    part = PDF.with_suffix(".part")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(color_scheme="light")
        page.set_default_timeout(MINUTES * 60_000)
        page.goto(PAGE.as_uri())
        page.evaluate(ALL_IS_SHOWN)
        page.pdf(
            path=part,
            format="A4",
            margin={"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"},
            print_background=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
            outline=True,
            tagged=True,
        )
        browser.close()
    part.replace(PDF)
    print(f"{PDF} ({PDF.stat().st_size / 1e6:.0f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
