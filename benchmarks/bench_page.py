"""Weight and speed of a chapter's page, beside a stock Jupyter Book page of the same text: `make bench-page`.

The stock book has the same sources, outputs, figures and tables (what `bookbuild.sphinx_ext` adds), and
Jupyter Book's own choices for all else: images as PNG files, MathJax and Thebe from other hosts, formulas set
at once. Both are served on this machine. What a page asks of another host is answered at once from the
installed MathJax, or not at all; so the stock page waits for no network, and its bytes are a lower bound.

The two take turns. Chromium's CPU is slowed 4 times.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from playwright.sync_api import Browser, Page, Route, sync_playwright

from bookbuild.pdf import BROWSERS
from bookbuild.results import ROOT
from bookbuild.sphinx_ext import mathjax_folder

STOCK = ROOT / "_build" / "stock"
SLOWER = 4
TIMES = 3
MOST_MS = 180_000

# A formula is set when it holds a picture (ours) or glyphs (stock). Readable: all in the first window are.
READABLE = """() => {
  const here = [...document.querySelectorAll("article .math")].filter((formula) => {
    const box = formula.getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  });
  return here.every((formula) => formula.querySelector("mjx-container svg, mjx-container mjx-math"));
}"""
FIRST_PAINT = """() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime"""
# The main thread has answered within 50 ms for a second.
QUIET = """() => new Promise((resolve) => {
  let last = performance.now(), calm = last;
  const timer = setInterval(() => {
    const now = performance.now();
    if (now - last > 100) calm = now;
    last = now;
    if (now - calm > 1000) { clearInterval(timer); resolve(calm); }
  }, 50);
})"""


def build_stock() -> Path:
    """Build the same sources with the choices of Jupyter Book, and return the folder of its pages."""
    shutil.rmtree(STOCK, ignore_errors=True)
    shutil.copytree(ROOT / "book", STOCK / "book")
    shutil.copy(ROOT / "_toc.yml", STOCK)
    config = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))
    ours = config["sphinx"]["config"]
    kept = ("nb_", "autodoc", "napoleon", "numfig", "math_numfig", "bibtex", "myst")
    content = ("sphinx_exercise", "sphinx_proof", "sphinx.ext.autodoc", "sphinx.ext.napoleon")
    config["sphinx"] = {
        "extra_extensions": [*content, "bookbuild.sphinx_ext"],
        "config": {name: value for name, value in ours.items() if name.startswith(kept)},
    }
    (STOCK / "_config.yml").write_text(yaml.safe_dump(config), "utf-8")
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    built = subprocess.run(
        [jupyter_book, "build", STOCK, "--quiet"], capture_output=True, text=True, check=False
    )
    if built.returncode:
        raise SystemExit(f"the stock book was not built:\n{built.stdout[-2000:]}\n{built.stderr[-2000:]}")
    return STOCK / "_build" / "html"


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that does not tell of each request."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def serve(folder: Path) -> ThreadingHTTPServer:
    """Serve a folder on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def answer(route: Route) -> None:
    """Answer for the other hosts: MathJax from the installed package, all else is refused."""
    url = urlsplit(route.request.url)
    if url.hostname == "127.0.0.1":
        return route.continue_()
    file = mathjax_folder() / url.path.partition("/es5/")[2]
    return route.fulfill(path=file) if "mathjax" in url.path and file.is_file() else route.abort()


def measure(browser: Browser, address: str) -> dict[str, float]:
    """Open a page with a cold cache; sizes in kB, times in s of the slowed machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page: Page = context.new_page()
    page.set_default_timeout(MOST_MS)
    sizes: dict[str, int] = {}
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.route("**/*", answer)
    page.on("response", lambda response: sizes.setdefault(response.url, len(response.body())))
    client = context.new_cdp_session(page)
    client.send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})
    page.goto(address, wait_until="commit")
    page.wait_for_load_state("domcontentloaded")
    page.wait_for_function(READABLE, polling=50)
    readable = page.evaluate("performance.now()")
    settled = page.evaluate(QUIET)
    found = {
        "requests": len(asked),
        "of other hosts": sum(urlsplit(url).hostname not in ("127.0.0.1", None) for url in asked),
        "kB": sum(sizes.values()) / 1e3,
        "first paint, s": page.evaluate(FIRST_PAINT) / 1e3,
        "first window readable, s": readable / 1e3,
        "page at rest, s": settled / 1e3,
    }
    context.close()
    return found


def main() -> None:
    """Print a table a page: ours, stock, and the ratio; medians of TIMES."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("chapters", nargs="*", default=["backward", "landscape", "group_norm"])
    parser.add_argument("--keep-stock", action="store_true", help="the stock book as it was built before")
    options = parser.parse_args()
    stock = STOCK / "_build" / "html" if options.keep_stock else build_stock()
    servers = {"ours": serve(ROOT / "_build" / "html"), "stock": serve(stock)}
    path = next(found for name in BROWSERS if (found := shutil.which(name)))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox"])
        for chapter in options.chapters:
            runs: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
            for _ in range(TIMES):
                for name, server in servers.items():
                    address = f"http://127.0.0.1:{server.server_port}/book/{chapter}.html"
                    runs[name].append(measure(browser, address))
            print(f"\n{chapter:28}{'ours':>10}{'stock':>10}{'ratio':>8}")
            for what in runs["ours"][0]:
                ours, other = (statistics.median(run[what] for run in runs[name]) for name in servers)
                ratio = f"{ours / other:8.2f}" if other else ""
                print(f"  {what:26}{ours:10.1f}{other:10.1f}{ratio}", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
