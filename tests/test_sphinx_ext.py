"""What the book adds to Sphinx: which pages are read again, and the tables that collect all chapters."""

import os
from types import SimpleNamespace

import pytest
from sphinx.errors import ExtensionError

from bnbook.claims import Claim
from bookbuild import sphinx_ext
from bookbuild.reading import read
from bookbuild.results import BOOK, Result


@pytest.fixture
def outputs(monkeypatch):
    """Keys of two chapters and the text of a page that collects them; change them at will."""
    state = {"sgd": "a", "cnn": "b", "table": "t", "facts": "f"}
    collecting = SimpleNamespace(text=lambda: state["table"])
    monkeypatch.setattr(sphinx_ext, "chapters", lambda: [BOOK / "sgd.md", BOOK / "cnn.md"])
    monkeypatch.setattr(sphinx_ext, "chapter_key", lambda page: state[page.stem])
    monkeypatch.setattr(sphinx_ext, "facts_of", lambda page: state["facts"] * (page.stem == "sgd"))
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
    outputs["facts"] = "g"  # such as the time that a deeper page takes
    assert outdated() == ["book/sgd"]
    env.found_docs.remove("book/sgd")
    outputs["sgd"] = "d"
    assert outdated() == []


def test_a_changed_static_file_alone_is_copied(outputs, monkeypatch, tmp_path):
    env = SimpleNamespace(found_docs={"book/references"})
    monkeypatch.setattr(sphinx_ext, "BOOK", tmp_path)
    (tmp_path / "_static").mkdir()
    for _ in range(2):
        (tmp_path / "_static" / "new.js").write_text("1")
        assert sphinx_ext.reread_changed_outputs(None, env, set(), set(), set()) == ["book/references"]
        assert sphinx_ext.reread_changed_outputs(None, env, set(), set(), set()) == []
        os.utime(tmp_path / "_static" / "new.js", (1, 1))


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


@pytest.fixture
def claims(monkeypatch, tmp_path):
    """Four claims, of which a chapter checks three."""
    found = {
        name: Claim(name, f"{name} is so.", kind, "ioffe2015", expect, "a ratio", published)
        for name, kind, expect, published in (
            ("one", "measurement", "holds", ""),
            ("two", "measurement", "corrected", ""),
            ("three", "identity", "reverses", ""),
            ("four", "replication", "holds", "14"),
        )
    }
    monkeypatch.setattr(sphinx_ext, "read_claims", lambda: found)
    page = tmp_path / "a.md"
    monkeypatch.setattr(sphinx_ext, "name_of", lambda page: page.stem)
    page.write_text("---\n---\n\n# A title\n\n**The question.** Is it?\n", "utf-8")
    executed = Result([], 3.0, {"one": [1.0, 2.0, 3.0], "two": [0.5], "three": [0.1]})
    monkeypatch.setattr(sphinx_ext, "results", lambda: {page: executed})
    monkeypatch.setattr(sphinx_ext, "parts", lambda: {"Part": [page]})
    entry = {"seeds": [1000, 2000], "held": {"one": [2000]}, "unmoved": []}
    monkeypatch.setattr(sphinx_ext, "read_replications", lambda: {"a": entry})
    return found


def test_a_claim_that_no_chapter_checks_stops_the_build(claims):
    with pytest.raises(ExtensionError, match="no chapter checks four"):
        sphinx_ext.ClaimsTable.text()


def test_the_claims_stand_by_chapter_and_kind_with_values_verdicts_and_counts(claims):
    del claims["four"]
    text = sphinx_ext.ClaimsTable.text()
    measurements = "**Measurements** – holds here: 1, is wrong as commonly stated: 1"
    total, chapter = text.split(":::{dropdown} A title – 2 measurements, 1 identity")
    assert total.split("\n") == [
        *("All 3 claims:", "", f"- {measurements}.", "- **Identities** – does not hold: 1.", "", "")
    ]
    assert chapter.index(f"{measurements}:") < chapter.index("| one is so.") < chapter.index("| two is so.")
    assert chapter.index("| two is so.") < chapter.index("**Identities** – does not hold: 1:")
    assert chapter.index("**Identities**") < chapter.index("| three is so.")
    assert "Published" not in text
    assert "Replications" not in text
    row = next(line for line in text.splitlines() if line.startswith("| one is so."))
    assert "a ratio: ≈2 [≈1, ≈3], 3 values" in row
    assert "| 2 of 3 |" in row
    assert "<claim-one>" in row
    other = next(line for line in text.splitlines() if line.startswith("| two is so."))
    assert "| 1 of 1 |" in other  # on no other seeds yet


def test_the_landing_page_counts_the_kinds_apart_in_all_and_by_chapter(claims):
    counts = "2 measurements, 1 replication, 1 identity"
    assert sphinx_ext.ClaimCounts.text() == f"The book has 4 claims: {counts}."
    assert "| 2 measurements, 1 identity | 1 min | 3 s |" in sphinx_ext.ChapterMap.text()


def test_the_reading_time_of_several_pages_is_the_sum_of_theirs_and_an_unknown_page_stops_the_build():
    pages, time = sphinx_ext.reading_time("sgd deeper/sgd")
    assert pages == [BOOK / "sgd.md", BOOK / "deeper/sgd.md"]
    assert time == f"{sum(read(page).minutes for page in pages)} min"
    with pytest.raises(ExtensionError, match=r"{reading}`sgd dgs`: there is no page dgs"):
        sphinx_ext.reading_time("sgd dgs")
