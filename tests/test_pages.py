"""What pages carry besides their text, with and without public addresses."""

from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup
from PIL import Image

from bookbuild import pages

REPOSITORY, BASE = "someone/book", "https://someone.github.io/book"


@pytest.fixture
def app(tmp_path):
    """As much of a Sphinx application as the functions look at."""
    config = SimpleNamespace(html_baseurl="", html_title="Tiny", author="A", copyright="2026")
    builder = SimpleNamespace(format="html", images={})
    env = SimpleNamespace(found_docs={"book/index", "book/sgd"})
    return SimpleNamespace(config=config, builder=builder, env=env, srcdir=tmp_path, outdir=tmp_path)


def context(**more):
    return {"header_buttons": [], "pathto": lambda file, _: f"../{file}", "title": "T", **more}


def offered(app, page="book/sgd"):
    """Texts and addresses of the buttons on a page."""
    found = context()
    pages.offer_notebook(app, page, "", found, None)
    return {button["text"]: button["url"] for group in found["header_buttons"] for button in group["buttons"]}


def test_a_chapter_offers_its_notebook_and_with_an_address_colab_and_binder(app, monkeypatch):
    download = {"Download the notebook": "../notebooks/sgd.ipynb"}
    monkeypatch.setattr(pages.addresses, "repository", lambda: "")
    assert offered(app) == download
    monkeypatch.setattr(pages.addresses, "repository", lambda: REPOSITORY)
    assert offered(app) == {
        **download,
        "Open in Colab": "https://colab.research.google.com/github/someone/book/blob/colab/sgd.ipynb",
        "Open on Binder": "https://mybinder.org/v2/gh/someone/book/HEAD?labpath=notebooks/sgd.ipynb",
    }
    assert offered(app, "book/setup") == {}


@pytest.mark.parametrize(
    ("repository", "own", "base"),
    [("", "", ""), (REPOSITORY, "", BASE), (REPOSITORY, "https://book.org", "https://book.org")],
)
def test_the_address_of_the_pages_follows_the_repository_unless_one_is_set(
    app, monkeypatch, repository, own, base
):
    monkeypatch.setattr(pages.addresses, "repository", lambda: repository)
    app.config.html_baseurl = own
    pages.find_address(app, app.config)
    assert app.config.html_baseurl == base


def described(app, page):
    found = context(title="<span>1.</span> T & U")
    pages.describe(app, page, "", found, None)
    tags = BeautifulSoup(found["metatags"], "html.parser").select("meta")
    return {tag.get("name") or tag.get("property"): tag["content"] for tag in tags}


def test_a_page_describes_itself_and_with_an_address_has_a_picture_to_share(app):
    tags = described(app, "book/sgd")
    assert tags["description"] == tags["og:description"]
    assert tags["description"].startswith("A network learns from thousands of examples")
    assert (tags["og:type"], tags["og:title"], tags["citation_title"]) == ("article", "1. T & U", "1. T & U")
    assert (tags["citation_inbook_title"], tags["citation_author"]) == ("Tiny", "A")
    assert "og:image" not in tags
    app.config.html_baseurl = BASE + "/"
    tags = described(app, "book/index")
    assert (tags["og:type"], tags["description"]) == ("website", pages.FRONT)
    assert tags["og:url"] == f"{BASE}/book/index.html"
    assert tags["og:image"] == f"{BASE}/_static/share.png"


def test_there_is_a_sitemap_only_with_an_address(app):
    pages.write_sitemap(app, None)
    assert not (app.outdir / "sitemap.xml").exists()
    app.config.html_baseurl = BASE
    pages.write_sitemap(app, None)
    places = ElementTree.parse(app.outdir / "sitemap.xml").iter(
        "{http://www.sitemaps.org/schemas/sitemap/0.9}loc"
    )
    assert [place.text for place in places] == [f"{BASE}/book/index.html", f"{BASE}/book/sgd.html"]


def test_an_image_becomes_webp_without_loss_and_keeps_its_place(app):
    (app.outdir / "_images").mkdir()
    png = app.outdir / "_images/a.png"
    Image.linear_gradient("L").convert("RGB").save(png)
    pixels = Image.open(png).tobytes()
    app.builder.images = {"_images/a.png": "a.png"}
    found = context(body='<p><img alt="x" src="../_images/a.png" /> <img src="../_images/other.png" /></p>')
    pages.lighten_images(app, "book/sgd", "", found, None)
    image, other = BeautifulSoup(found["body"], "html.parser").select("img")
    assert image.attrs == {
        "alt": "x",
        "src": "../_images/a.webp",
        "width": "256",
        "height": "256",
        "loading": "lazy",
        "decoding": "async",
    }
    assert other.attrs == {"src": "../_images/other.png"}
    pages.write_webp(app, None)
    assert not png.exists()
    assert Image.open(app.outdir / "_images/a.webp").convert("RGB").tobytes() == pixels


def test_the_arrow_of_the_sidebar_says_whose_pages_it_opens():
    row = (
        '<a href="sgd.html">1. Gradient &amp; noise</a><details open="open"><summary><span></span></summary>'
    )
    named = pages.name_toggles(row)
    assert '<summary aria-label="Pages under 1. Gradient &amp; noise"><span>' in named
    assert pages.name_toggles(named) == named
