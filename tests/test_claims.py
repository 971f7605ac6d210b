import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bnbook import claims

BOOK = claims.CLAIMS_FILE.parent
EXAMPLE = claims.Claim("x", "It is so.", "ioffe2015, figure 1", "holds", "ratio", published="14x")


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
    assert replace(EXAMPLE, source="folklore").citation() == "folklore"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {says: s, source: folklore, expect: holds}", r"claim a has missing fields \['measures'\]"),
        ("a: {says: s, source: f, expect: holds, measures: m, color: red}", r"unknown fields \['color'\]"),
        (
            "a: {says: s, source: f, expect: maybe, measures: m}",
            "claim a expects 'maybe', allowed are holds, re",
        ),
    ],
)
def test_a_faulty_entry_is_named(tmp_path, text, message):
    file = tmp_path / "claims.yml"
    file.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        claims.read_claims(file)


def test_a_missing_file_says_how_to_install(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*; install the package again"):
        claims.read_claims(tmp_path / "claims.yml")


def test_an_unknown_id_is_refused_and_the_known_ones_are_named():
    with pytest.raises(
        ValueError, match=r"id: got 'no-such', which is not in claims\.yml; known are .*bn-whitens"
    ):
        claims.claim("no-such")


def test_every_claim_is_checked_by_exactly_one_chapter():
    checked = [
        name
        for chapter in BOOK.glob("*.md")
        for name in re.findall(r'claim\(\s*"([\w-]+)"', chapter.read_text("utf-8"))
    ]
    assert sorted(checked) == sorted(claims.read_claims())


def test_every_source_has_an_entry_in_the_bibliography():
    keys = set(re.findall(r"^@\w+\{(\S+),", Path(BOOK / "references.bib").read_text("utf-8"), re.M))
    sources = {claim.source.partition(",")[0] for claim in claims.read_claims().values()}
    assert sources - {"folklore", "this book"} <= keys
