"""What the book adds to Sphinx: which pages are read again, and the tables that collect all chapters."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from sphinx.errors import ExtensionError

from bnbook.claims import Claim
from bookbuild import sphinx_ext
from bookbuild.results import Result


@pytest.fixture
def outputs(monkeypatch):
    """Fingerprints of two chapters and the text of a page that collects them; change them at will."""
    state = {"sgd": "a", "cnn": "b", "table": "t"}
    collecting = SimpleNamespace(text=lambda: state["table"])
    monkeypatch.setattr(sphinx_ext, "chapters", lambda: [Path("sgd.md"), Path("cnn.md")])
    monkeypatch.setattr(sphinx_ext, "fingerprint", lambda chapter: state[chapter.stem])
    monkeypatch.setattr(sphinx_ext, "COLLECTED", {"book/claims": collecting})
    return state


def test_a_page_is_read_again_if_its_outputs_or_what_it_collects_changed_and_only_then(outputs):
    env = SimpleNamespace(found_docs={"book/sgd", "book/cnn", "book/claims", "book/setup"})

    def outdated():
        return sphinx_ext.reread_changed_outputs(None, env, set(), set(), set())

    assert outdated() == ["book/sgd", "book/cnn", "book/claims"]
    assert outdated() == []
    outputs["cnn"] = "c"
    assert outdated() == ["book/cnn"]
    outputs["table"] = "u"
    assert outdated() == ["book/claims"]
    env.found_docs.remove("book/sgd")
    outputs["sgd"] = "d"
    assert outdated() == []


def tidied(text):
    """A docstring as autodoc hands it to docutils."""
    lines = text.splitlines()
    sphinx_ext.tidy_docstring(None, "function", "f", None, None, lines)
    return "\n".join(lines)


def test_a_mark_in_a_docstring_becomes_a_citation_of_the_book():
    assert tidied("As in ([ba2016]_, [wu2018]_).") == "As in (:cite:t:`ba2016`, :cite:t:`wu2018`)."
    assert tidied("The rest, x[0] and [1, 2], stays.") == "The rest, x[0] and [1, 2], stays."


def test_a_mark_without_a_source_stops_the_build():
    with pytest.raises(ExtensionError, match=r"\[nobody1999\]_: references\.bib has no such source"):
        tidied("As in [nobody1999]_.")


def chapter(*claims):
    """An executed chapter that checked these claims."""
    record = [{"bnbook": {"claim": name, "measured": measured}} for name, measured in claims]
    drawn = [new_output("display_data", metadata=metadata) for metadata in record]
    cells = [new_markdown_cell("# A title\n\nText."), new_code_cell(outputs=drawn)]
    return Result(new_notebook(cells=cells), 3.0)


@pytest.fixture
def claims(monkeypatch):
    """Three claims, of which a chapter checks two."""
    found = {
        name: Claim(name, f"{name} is so.", "ioffe2015", expect, "a ratio", published)
        for name, expect, published in (
            ("one", "holds", ""),
            ("two", "corrected", ""),
            ("three", "holds", "14"),
        )
    }
    monkeypatch.setattr(sphinx_ext, "read_claims", lambda: found)
    monkeypatch.setattr(
        sphinx_ext, "results", lambda: {Path("a.md"): chapter(("one", [1.0, 2.0, 3.0]), ("two", [0.5]))}
    )
    return found


def test_a_claim_that_no_chapter_checks_stops_the_build(claims):
    with pytest.raises(ExtensionError, match="no chapter checks three"):
        sphinx_ext.ClaimsTable.text()


def test_the_claims_stand_by_chapter_with_values_verdict_and_counts(claims):
    del claims["three"]
    text = sphinx_ext.ClaimsTable.text()
    assert "All 2 claims: holds here: 1, is corrected: 1." in text
    assert ":::{dropdown} A title – holds here: 1, is corrected: 1" in text
    assert "Published" not in text
    row = next(line for line in text.splitlines() if line.startswith("| one is so."))
    assert "a ratio: ≈2 [≈1, ≈3], 3 values" in row
    assert "<claim-one>" in row
