"""The page that is printed: what it takes of the built pages."""

import pytest
from bs4 import BeautifulSoup

from bookbuild import pdf

PAGE = """<html><head><meta property="og:site_name" content="Tiny">
<link rel="stylesheet" href="../_static/a.css">
<script>window.MathJax = {{}}</script><script src="../_static/mathjax/startup.js"></script>
<script src="../_static/other.js"></script></head><body><nav>Menu</nav><article class="bd-article">
<section id="{name}"><h1>{name}<a class="headerlink" href="#{name}">#</a></h1>{body}</section>
</article></body></html>"""


@pytest.fixture
def html(tmp_path):
    """Two built pages."""
    (tmp_path / "book").mkdir()
    bodies = {
        "one": '<a href="two.html#two">t</a><a href="two.html">p</a><a href="#one">o</a>'
        '<a href="../x.ipynb">n</a>'
        '<div class="prediction-tally" hidden></div>'
        '<details class="prediction-answer"><summary>Show me</summary>answer</details>'
        '<a href="https://a.org/#b">w</a><details class="hide">code</details><script>1</script>',
        "two": '<img src="../_images/i.webp" loading="lazy"><details class="claims">rows</details>',
    }
    for name, body in bodies.items():
        (tmp_path / "book" / f"{name}.html").write_text(PAGE.format(name=name, body=body), "utf-8")
    return tmp_path


@pytest.fixture
def joined(html):
    """The two as one."""
    return BeautifulSoup(pdf.joined(html, {"": ["book/one"], "Part I": ["book/two"]}), "html.parser")


def test_pages_follow_each_other_under_the_names_of_their_parts(joined):
    texts = [tag.get_text() for tag in joined.select("h1, .part")]
    assert texts == ["one", "Part I", "two"]
    assert joined.title.string == "Tiny"


def test_links_between_pages_lead_to_their_place_in_the_joined_page(joined):
    links = {link.get_text(): link.get("href") for link in joined.select("a")}
    assert links == {
        "t": "#book/two:two",
        "p": "#book/two",
        "o": "#book/one:one",
        "n": None,  # a file that is not printed
        "w": "https://a.org/#b",
    }
    assert {"book/one", "book/one:one", "book/two", "book/two:two"} == {
        tag["id"] for tag in joined.select("[id]")
    }


def test_files_are_found_from_the_folder_of_all_pages(joined):
    assert joined.select_one("link")["href"] == "_static/a.css"
    assert joined.select_one("img")["src"] == "_images/i.webp"
    assert joined.select_one("img")["loading"] == "eager"


def test_what_is_folded_is_printed_but_for_hidden_code_and_only_mathjax_runs(joined):
    assert [fold.get_text() for fold in joined.select("details[open]")] == ["answer", "rows"]
    assert joined.select_one("details:not([open]), .prediction-tally") is None
    assert [script.get("src") for script in joined.select("script")] == [None, "_static/mathjax/startup.js"]


def test_a_page_without_text_is_named(html):
    (html / "book/two.html").write_text("<html></html>", "utf-8")
    with pytest.raises(ValueError, match=r"book/two\.html: got a page without an article"):
        pdf.joined(html, {"": ["book/one", "book/two"]})


def test_a_book_that_was_not_built_says_what_to_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pdf, "HTML", tmp_path)
    monkeypatch.setattr(pdf.shutil, "which", lambda name: "/usr/bin/" + name)
    assert pdf.main() == 1
    assert "book/index.html is not built yet: run `make pdf`" in capsys.readouterr().err
    monkeypatch.setattr(pdf.shutil, "which", lambda name: None)
    assert pdf.main() == 1
    assert "install one of chromium" in capsys.readouterr().err
