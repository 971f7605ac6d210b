"""The book's sources."""

import re
from collections import Counter

import pytest
from pybtex.database import parse_file

from bnbook.claims import read_claims
from bookbuild.results import BOOK, ROOT

SOURCES = parse_file(str(BOOK / "references.bib")).entries


def test_no_source_stands_there_twice():
    titles = Counter(re.sub(r"\W", "", entry.fields["title"].lower()) for entry in SOURCES.values())
    assert [title for title, count in titles.items() if count > 1] == []


def test_every_source_has_its_place():
    texts = [path.read_text("utf-8") for path in (*BOOK.rglob("*.md"), BOOK / "claims.yml")]
    texts += [path.read_text("utf-8") for path in (ROOT / "code/bnbook").rglob("*.py")]
    named = set(re.findall(r"\w+", "\n".join(texts)))
    assert set(SOURCES) - named == set()


@pytest.mark.parametrize("name", SOURCES)
def test_names_are_written_in_unicode_since_the_labels_are_made_of_their_letters(name):
    assert not re.search(r"\\", str(SOURCES[name].persons))
    assert SOURCES[name].persons["author"]
    assert SOURCES[name].fields["year"].isdigit()


def test_a_misconception_has_a_place_where_it_is_said_or_is_nobodys():
    page = (BOOK / "misconceptions.md").read_text("utf-8")
    entries = re.findall(r"^\*\*(.+)\*\*\n: ((?:.+\n)+)", page, re.M)
    assert len(entries) == page.count("\n: ") > 25
    for sentence, answer in entries:
        nobodys = sentence.startswith("One might think")
        assert nobodys != (sentence[0] == '"'), sentence
        assert nobodys or re.match(r"[^.:]*(\{cite:t\}`|\]\(https)", answer), sentence


@pytest.mark.parametrize("page", sorted(BOOK.rglob("*.md")), ids=lambda page: page.stem)
def test_a_link_to_a_claim_leads_to_one(page):
    linked = set(re.findall(r"`[^`]*<claim-([\w-]+)>`", page.read_text("utf-8")))
    assert linked <= set(read_claims())
