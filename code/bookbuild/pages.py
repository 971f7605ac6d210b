"""What the pages of the book carry besides their text: light images, the notebook, words for search engines.

* Images become WebP files, with their size in the page, and are loaded when they come near the window.
* A chapter offers its notebook: as a download, and in Colab and on Binder if the repository is public.
* A page describes itself to search engines and reference managers: a chapter by the question that it
  answers. If the book has an address there is a picture to share it with, and a sitemap.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx.application import Sphinx
from sphinx.config import Config

from bookbuild import addresses
from bookbuild.notebooks import write_with_figures
from bookbuild.results import BOOK, chapters, contents, name_of

FRONT = "A course textbook on batch normalization in which every claim about an experiment is measured."
PICTURE = "_static/share.png"


def find_address(app: Sphinx, config: Config) -> None:
    """Let the pages know where they will be, unless ``_config.yml`` names an address of its own."""
    config.html_baseurl = config.html_baseurl or addresses.pages(addresses.repository())


def lighten_images(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Let the page's images be WebP files with their size, so that nothing jumps when they arrive."""
    sources = {name: Path(app.srcdir) / path for path, name in app.builder.images.items()}

    def light(tag: re.Match[str]) -> str:
        path = sources.get(tag["name"] + ".png")
        if path is None:
            return tag[0]
        with Image.open(path) as image:
            width, height = image.size
        size = "" if " width=" in tag[0] else f' width="{width}" height="{height}"'
        return f'{tag["head"]}{tag["name"]}.webp"{tag["tail"]}{size} loading="lazy" decoding="async" />'

    image_tag = r'(?P<head><img [^>]*?src="[^">]*?_images/)(?P<name>[^"/>]+)\.png"(?P<tail>[^>]*?)\s*/?>'
    context["body"] = re.sub(image_tag, light, context.get("body", ""))


def write_webp(app: Sphinx, exception: Exception | None) -> None:
    """Write the lossless WebP files that the pages ask for, in place of the PNG files."""
    if exception is not None or app.builder.format != "html":
        return
    for png in (Path(app.outdir) / "_images").glob("*.png"):
        webp = png.with_suffix(".webp")
        if not webp.exists():  # the name is a hash of the content
            with Image.open(png) as image:
                opaque = "A" not in image.getbands() or image.getchannel("A").getextrema()[0] == 255
                (image.convert("RGB") if opaque else image).save(webp, "WEBP", lossless=True, method=2)
        png.unlink()


def offer_notebook(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Offer the page's notebook in its header."""
    name = pagename.removeprefix("book/")
    if BOOK / f"{name}.md" not in chapters():
        return
    buttons = [
        _link("Download the notebook", context["pathto"](f"notebooks/{name}.ipynb", 1), "fas fa-download")
    ]
    if repository := addresses.repository():
        buttons += [
            _link("Open in Colab", addresses.colab(repository, name), "fas fa-play"),
            _link("Open on Binder", addresses.binder(repository, name), "fas fa-play"),
        ]
    group = {"type": "group", "tooltip": "Run this chapter", "icon": "fas fa-rocket", "label": "run-buttons"}
    context["header_buttons"].insert(0, group | {"buttons": buttons})


def write_notebook(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Put the page's notebook beside the pages, with its figures."""
    name = pagename.removeprefix("book/")
    if BOOK / f"{name}.md" in chapters():
        write_with_figures(BOOK / f"{name}.md", Path(app.outdir) / "notebooks" / f"{name}.ipynb")


def _link(text: str, url: str, icon: str) -> dict[str, str]:
    return {"type": "link", "text": text, "url": url, "icon": icon}


def question(text: str) -> str:
    """The question that a chapter answers: its paragraph that begins with "**The question.**", or ''."""
    found = re.search(r"^\*\*The question\.\*\* (.+?)(?:\n\n|\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return " ".join(found[1].split()) if found else ""


def describe(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Add what search engines and messengers show of a page, and what a citation needs."""
    source = BOOK / f"{pagename.removeprefix('book/')}.md"
    text = question(source.read_text("utf-8")) if source.is_file() else ""
    about = re.sub(r"[*$`\\]", "", text) or FRONT
    title = re.sub(r"<[^>]+>", "", context.get("title", "")) or app.config.html_title
    tags = {"og:type": "article" if text else "website", "og:title": title, "og:description": about}
    tags["og:site_name"] = app.config.html_title
    if base := app.config.html_baseurl:
        tags |= {"og:url": f"{base.rstrip('/')}/{pagename}.html", "og:image": f"{base.rstrip('/')}/{PICTURE}"}
    names = {"description": about, "citation_title": title, "citation_inbook_title": app.config.html_title}
    names |= {"citation_author": app.config.author, "citation_publication_date": app.config.copyright}
    lines = [f'<meta name="{name}" content="{html.escape(value)}" />' for name, value in names.items()]
    lines += [f'<meta property="{name}" content="{html.escape(value)}" />' for name, value in tags.items()]
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def pass_deeper_pages_by(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Let "next" and "previous" lead from chapter to chapter; only a deeper page leads to its neighbours."""
    chapter = {f"book/{name_of(place.page)}": place.chapter for place in contents()}
    relations = app.builder.relations  # type: ignore[attr-defined]
    if pagename not in relations or "/deeper/" in pagename:
        return
    for side, way in (("prev", 1), ("next", 2)):
        other = relations[pagename][way]
        while other in chapter and chapter[other] != BOOK / f"{other.removeprefix('book/')}.md":
            other = relations[other][way]
        title = other and app.builder.render_partial(app.env.titles[other])["title"]  # type: ignore[attr-defined]
        context[side] = other and {"link": context["pathto"](other), "title": title}


def name_toggles(contents: str) -> str:
    """Let every arrow that opens a chapter's list of pages say, to who cannot see it, whose list it is."""
    return re.sub(
        r"(>)([^<>]+)(</a><details[^>]*><summary)(?=>)",
        lambda m: f'{m[1]}{m[2]}{m[3]} aria-label="Pages under {html.escape(html.unescape(m[2]))}"',
        contents,
    )


def name_sidebar_toggles(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Name the arrows of the sidebar; the theme leaves them without a text."""
    toctree = context["generate_toctree_html"]
    context["generate_toctree_html"] = lambda *args, **kwargs: name_toggles(str(toctree(*args, **kwargs)))


def write_sitemap(app: Sphinx, exception: Exception | None) -> None:
    """List the pages for search engines, if the book has an address."""
    base = app.config.html_baseurl.rstrip("/")
    if exception is None and app.builder.format == "html" and base:
        pages = [f"<url><loc>{base}/{page}.html</loc></url>" for page in sorted(app.env.found_docs)]
        head = '<?xml version="1.0" encoding="utf-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">'
        (Path(app.outdir) / "sitemap.xml").write_text("\n".join([head, *pages, "</urlset>\n"]), "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything; the theme makes its list of buttons at priority 500."""
    app.connect("config-inited", find_address)
    app.connect("html-page-context", lighten_images, priority=600)
    app.connect("html-page-context", offer_notebook, priority=600)
    app.connect("html-page-context", describe, priority=600)
    app.connect("html-page-context", pass_deeper_pages_by)
    app.connect("html-page-context", write_notebook)
    app.connect("html-page-context", name_sidebar_toggles, priority=900)  # after the theme has made its own
    for finish in (write_webp, write_sitemap):
        app.connect("build-finished", finish)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
