"""Pages that stand under a chapter: numbers go on, links lead right, and "next" passes them by."""

from types import SimpleNamespace

import nbformat
import pytest
from docutils import nodes
from docutils.utils import new_document
from sphinx.addnodes import pending_xref

from bookbuild import execute, keys, notebooks, pages, pdf, portable, reading, results, sphinx_ext
from bookbuild.results import Result

HEADER = "---\njupytext:\n  text_representation:\n    extension: .md\n    format_name: myst\n"
HEADER += "kernelspec:\n  display_name: Python 3\n  language: python\n  name: python3\n---\n"
TOC = """
parts:
  - caption: Start here
    chapters:
      - file: book/start
  - caption: Part I
    numbered: true
    chapters:
      - file: book/one
        sections:
          - file: book/deeper/one
      - file: book/two
"""
CELL = "```{code-cell} ipython3\n1 + 1\n```\n"


def equation(label):
    return f"```{{math}}\n:label: {label}\nx\n```\n"


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A book of a page before Part I, two chapters, and a deeper page of the first."""
    for folder in ("book/deeper", "notebooks", "code/bnbook"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "code/pyproject.toml").write_text("[project]\ndependencies = []\n", "utf-8")
    (tmp_path / "code/bnbook/__init__.py").write_text("", "utf-8")
    (tmp_path / "book/claims.yml").write_text("{}", "utf-8")
    (tmp_path / "_toc.yml").write_text(TOC, "utf-8")
    texts = {
        "index": "# Front\n",
        "start": f"# Start\n\n{equation('eq-start')}",
        "one": f"# One\n\n**The question.** What?\n\n{equation('eq-one')}\n{{doc}}`deeper/one`\n\n{CELL}",
        "deeper/one": f"# More of one\n\n{equation('eq-deep')}\n{{doc}}`../one`, {{doc}}`/book/start`\n\n"
        + CELL,
        "two": f"# Two\n\n**The question.** Why?\n\n{equation('eq-two')}\n{{doc}}`deeper/one`\n\n{CELL}",
    }
    for name, text in texts.items():
        (tmp_path / f"book/{name}.md").write_text(HEADER + "\n" + text, "utf-8")
    for module in (keys, results, execute, notebooks):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for module in (results, portable, pages, sphinx_ext):
        monkeypatch.setattr(module, "BOOK", tmp_path / "book")
    monkeypatch.setattr(results, "EXECUTED", tmp_path / "_build/executed")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    keys.forget()
    yield tmp_path
    keys.forget()


def test_a_deeper_page_follows_its_chapter_and_belongs_to_it(book):
    one, deeper = book / "book/one.md", book / "book/deeper/one.md"
    assert [results.name_of(page) for page in results.chapters()] == ["one", "deeper/one", "two"]
    assert (results.chapter_of(deeper), results.chapter_of(one)) == (one, one)
    assert (results.deeper_pages(one), results.deeper_pages(deeper)) == ([deeper], [])
    kinds = {results.name_of(place.page): reading.kind_of(place) for place in results.contents()}
    assert kinds == {"start": "start", "one": "chapter", "deeper/one": "deeper", "two": "chapter"}
    assert pdf.printed_pages()["Part I"] == ["book/one", "book/deeper/one", "book/two"]


def test_numbers_go_on_where_the_chapter_ends_and_pages_outside_the_parts_count_by_themselves(book):
    names = portable.labels().names
    assert names == {"eq-start": "(1)", "eq-one": "(1.1)", "eq-deep": "(1.2)", "eq-two": "(2.1)"}


def test_links_between_notebooks_lead_from_folder_to_folder(book):
    labels = portable.labels()

    def text(name):
        return portable.portable(book / f"book/{name}.md", labels).cells[0].source

    assert "[More of one](deeper/one.ipynb)" in text("one")
    assert "[One](../one.ipynb), [Start](../../book/start.md)" in text("deeper/one")
    assert "# One\n\n1 minute to read, less than a minute to run. Deeper: [More of one]" in text("one")
    assert "A deeper page of [One](../one.ipynb). 1 minute to read" in text("deeper/one")


def test_a_deeper_page_is_executed_by_its_name_and_has_a_notebook(book):
    assert execute.main(["deeper/one", "--jobs", "1"]) == 0
    assert list((book / "_build/executed/deeper/one").glob("*.json"))
    assert notebooks.main(["deeper/one"]) == 0
    pair = nbformat.read(book / "notebooks/deeper/one.ipynb", as_version=4)
    assert pair.cells[-1].outputs[0].data["text/plain"] == "2"
    assert notebooks.problems(book / "book/deeper/one.md", portable.labels()) == []


def test_the_claims_of_a_deeper_page_stand_with_its_chapters_and_the_map_has_one_row(book, monkeypatch):
    claims = {name: SimpleNamespace(kind="identity", verdict="holds") for name in ("a", "b", "c")}
    found = [{"a": [1]}, {"b": [1]}, {"c": [1]}]
    executed = {page: Result([], 3.0, one) for page, one in zip(results.chapters(), found, strict=True)}
    monkeypatch.setattr(sphinx_ext, "results", lambda: executed)
    monkeypatch.setattr(sphinx_ext, "read_claims", lambda: claims)
    monkeypatch.setattr(sphinx_ext.ClaimsTable, "table", staticmethod(lambda here, *_: " ".join(here)))
    table = sphinx_ext.ClaimsTable.text()
    assert "dropdown} One – 2 identities" in table
    assert "a b" in table
    assert "More of one" not in table
    rows = [line for line in sphinx_ext.ChapterMap.text().splitlines() if "{doc}" in line]
    assert [row.split(" | ")[0] for row in rows] == [
        "| {doc}`/book/one`; deeper: {doc}`/book/deeper/one`",
        "| {doc}`/book/two`",
    ]
    assert rows[0].endswith("| 2 identities | 1 min | 3 s |")


def test_next_and_previous_pass_a_deeper_page_by_and_it_leads_to_its_neighbours(book):
    order = ["book/index", "book/start", "book/one", "book/deeper/one", "book/two"]
    relations = {
        name: (None, order[i - 1] if i else None, (order[i + 1 :] or [None])[0])
        for i, name in enumerate(order)
    }
    builder = SimpleNamespace(relations=relations, render_partial=lambda title: {"title": title})
    app = SimpleNamespace(builder=builder, env=SimpleNamespace(titles={name: name.upper() for name in order}))

    def around(name):
        context = {"pathto": lambda other: other, "prev": "kept", "next": "kept"}
        pages.pass_deeper_pages_by(app, name, "", context, None)
        return [context[side] and context[side]["link"] for side in ("prev", "next")]

    assert around("book/one") == ["book/start", "book/two"]
    assert around("book/two") == ["book/one", None]
    context = {"prev": "kept", "next": "kept"}
    pages.pass_deeper_pages_by(app, "book/deeper/one", "", context, None)
    assert context == {"prev": "kept", "next": "kept"}


def test_the_line_below_a_title_links_the_deeper_page_and_the_chapter(book, monkeypatch):
    found = {page: Result([], 3.0, {}) for page in results.chapters()}
    monkeypatch.setattr(sphinx_ext, "results", lambda: found)

    def links(name):
        doctree = new_document("")
        doctree += nodes.section("", nodes.title(text="T"), nodes.paragraph(text="Text."))
        env = SimpleNamespace(docname=f"book/{name}")
        sphinx_ext.add_facts(SimpleNamespace(srcdir=book, env=env), doctree)
        assert doctree[0][1]["classes"] == ["facts"]
        return [link["reftarget"] for link in doctree.findall(pending_xref)]

    assert links("one") == ["/book/deeper/one"]
    assert links("deeper/one") == ["/book/one"]
    assert links("two") == []
