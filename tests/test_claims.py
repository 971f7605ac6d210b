import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from bnbook import claims

BOOK = claims.CLAIMS_FILE.parent
EXAMPLE = claims.Claim(
    "x", "It is so.", "measurement", "ioffe2015, figure 1", "holds", "ratio", published="14x"
)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed: (bundle, metadata) pairs."""
    calls = []
    monkeypatch.setattr(claims, "display", lambda bundle, metadata, raw: calls.append((bundle, metadata)))
    return calls


@pytest.mark.parametrize(
    ("expect", "condition"), [("holds", True), ("reverses", False), ("corrected", False)]
)
def test_an_expected_outcome_is_shown_with_its_numbers(shown, expect, condition):
    replace(EXAMPLE, expect=expect).check(condition, measured=[5.0, 6.0, 7.0])
    ((bundle, metadata),) = shown
    assert metadata == {"bnbook": {"claim": "x", "measured": [5.0, 6.0, 7.0]}}
    for text in bundle.values():
        assert claims.VERDICTS[expect] in text
        assert "It is so." in text
        assert "≈6 [≈5, ≈7]" in text


def test_what_an_identity_counts_is_exact_and_is_not_marked_as_measured(shown):
    replace(EXAMPLE, kind="identity").check(True, measured=[8, 8, 9])
    replace(EXAMPLE, kind="identity").check(True, measured=[8.0, 8.0, 9.0])
    EXAMPLE.check(True, measured=[8, 8, 9])
    texts = [bundle["text/plain"] for bundle, _ in shown]
    assert ["8 [8, 9]" in text for text in texts] == [True, False, False]
    assert ["≈8 [≈8, ≈9]" in text for text in texts] == [False, True, True]


@pytest.mark.parametrize("kind", claims.KINDS)
def test_the_box_names_the_kind_and_the_figure_that_shows_how_far_the_verdict_holds(shown, kind):
    replace(EXAMPLE, kind=kind, map="fig-a").check(True, measured=1.0)
    replace(EXAMPLE, kind=kind).check(True, measured=1.0)
    (with_map, _), (without, _) = shown
    assert all(f"({kind})" in text for text in with_map.values())
    assert "How far it holds: {numref}`fig-a`." in with_map["text/markdown"]
    assert all("How far it holds: fig-a." in with_map[name] for name in ("text/html", "text/plain"))
    assert not any("How far" in text for text in without.values())


def test_the_verdict_of_an_identity_does_not_depend_on_the_scale():
    verdicts = [
        [replace(EXAMPLE, kind=kind, expect=expect).verdict for expect in claims.VERDICTS]
        for kind in ("measurement", "identity")
    ]
    assert verdicts[0] == list(claims.VERDICTS.values())
    assert verdicts[1] == ["holds", "does not hold", "is wrong as commonly stated"]


@pytest.mark.parametrize(("expect", "condition"), [("holds", False), ("reverses", True), ("corrected", True)])
def test_an_unexpected_outcome_fails_in_either_direction(shown, expect, condition):
    with pytest.raises(AssertionError, match=rf"claim x was expected to be '{expect}', .* {condition}"):
        replace(EXAMPLE, expect=expect).check(condition, measured=1.0)
    assert not shown


@pytest.mark.parametrize("measured", [[np.nan], [1.0, np.inf], []])
def test_a_number_that_is_not_finite_cannot_pass_for_a_refutation(shown, measured):
    with pytest.raises(ValueError, match=r"measured: got .* expected finite numbers"):
        replace(EXAMPLE, expect="reverses").check(False, measured=measured)
    assert not shown


def test_a_condition_has_to_be_one_truth_value():
    with pytest.raises(TypeError, match="condition: got ndarray, expected True or False"):
        EXAMPLE.check(np.array([True, False]), measured=1.0)


def test_a_numpy_truth_value_is_accepted(shown):
    EXAMPLE.check(np.bool_(True), measured=1.0)
    assert len(shown) == 1
    assert "median" not in shown[0][0]["text/plain"]  # one value has no spread


def test_a_source_with_a_key_becomes_a_citation():
    assert EXAMPLE.citation() == "{cite:t}`ioffe2015`, figure 1"
    assert replace(EXAMPLE, source="ioffe2015").citation() == "{cite:t}`ioffe2015`"
    assert replace(EXAMPLE, source="this book").citation() == "this book"


SOUND = {"says": "s", "kind": "measurement", "source": "a1, table 1", "expect": "holds", "measures": "m"}
CITE = "cite a place that states the sentence, or ask it as a question"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": None}, r"claim a has missing fields \['measures'\]"),
        ({"kind": None}, r"claim a has missing fields \['kind'\]"),
        ({"color": "red"}, r"unknown fields \['color'\]"),
        ({"expect": "maybe"}, "claim a has expect: maybe, allowed are holds, re"),
        ({"kind": "guess"}, "claim a has kind: guess, allowed are measurement, replication, identity"),
        ({"source": "folklore"}, f"claim a has source: folklore and expect: holds; {CITE}"),
        ({"source": "folklore", "expect": "corrected"}, f"folklore and expect: corrected; {CITE}"),
        ({"source": "this book", "expect": "corrected"}, f"this book and expect: corrected; {CITE}"),
        ({"kind": "replication"}, "claim a replicates a result, so it needs the published number"),
    ],
)
def test_a_faulty_entry_is_named(tmp_path, changes, message):
    entry = {key: value for key, value in (SOUND | changes).items() if value}
    file = tmp_path / "claims.yml"
    file.write_text(yaml.safe_dump({"a": SOUND}), "utf-8")
    assert list(claims.read_claims(file)) == ["a"]
    file.write_text(yaml.safe_dump({"a": entry}), "utf-8")
    with pytest.raises(ValueError, match=message):
        claims.read_claims(file)


def test_a_missing_file_says_how_to_install(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*; install the package again"):
        claims.read_claims(tmp_path / "claims.yml")


def test_an_unknown_id_is_refused_and_the_nearest_ones_are_named():
    with pytest.raises(ValueError, match=r"id: got 'bn-whiten', which .* in claims\.yml; it has bn-whitens"):
        claims.claim("bn-whiten")
    with pytest.raises(ValueError, match="it has none of a similar name"):
        claims.claim("xyz")


def test_every_claim_is_checked_by_exactly_one_chapter():
    checked = [
        name
        for chapter in BOOK.rglob("*.md")
        for name in re.findall(r'claim\(\s*"([\w-]+)"', chapter.read_text("utf-8"))
    ]
    assert sorted(checked) == sorted(claims.read_claims())


def test_every_source_has_an_entry_in_the_bibliography():
    keys = set(re.findall(r"^@\w+\{(\S+),", Path(BOOK / "references.bib").read_text("utf-8"), re.M))
    sources = {claim.source.partition(",")[0] for claim in claims.read_claims().values()}
    assert sources - {"this book"} <= keys


def test_what_one_might_expect_is_nobodys_sentence_and_does_not_hold():
    for claim in claims.read_claims().values():
        if re.search(r"[Oo]ne might", claim.says):
            assert (claim.expect, claim.source) == ("reverses", "this book"), claim.id


def test_every_map_is_a_figure_of_the_chapter_that_checks_the_claim_or_of_its_deeper_page():
    for chapter in BOOK.rglob("*.md"):
        text = chapter.read_text("utf-8")
        maps = {claims.claim(name).map for name in re.findall(r'claim\(\s*"([\w-]+)"', text)} - {""}
        pages = [page.read_text("utf-8") for page in BOOK.rglob(chapter.name)]
        assert maps <= set(re.findall(r"^    name: (fig-\S+)$", "\n".join(pages), re.M))
