"""What stands over a symbol of a formula."""

import re

import pytest

from bookbuild.symbols import NOTATION, key, meanings

TABLE = r"""
| Symbol | Meaning | In code |
| --- | --- | --- |
| $\mu_B$, $\sigma_B^2$ | mean and **biased** variance, over $N$ | `mean` |
| $\kappa$ | condition number $\lambda_{\max}$ | |
| $\mathbf 1$ | the vector of ones | |

## Where a letter means something else

| Chapter | Letters |
| --- | --- |
| {doc}`one`, {doc}`two` | $\kappa$: kurtosis; $n$, $N$: counts of $x$ |
"""


def test_a_key_does_not_depend_on_the_order_of_index_and_exponent():
    assert key(r"\sigma_B^2") == key(r"\sigma^2_B") == "2Bσ"
    assert key(r"\hat x_i") == "ix\N{COMBINING CIRCUMFLEX ACCENT}"


def test_all_symbols_of_a_row_share_its_words():
    found = meanings(TABLE, "book/three")
    assert found[key(r"\mu_B")] == found[key(r"\sigma_B^2")] == "μB, σB²: mean and biased variance, over N"
    assert found["κ"] == "κ: condition number λ_max"


def test_a_number_is_no_symbol():
    assert "1" not in meanings(TABLE, "book/one")


@pytest.mark.parametrize("page", ["book/one", "book/two", "book/deeper/two"])
def test_on_its_pages_a_letter_means_what_the_chapter_says(page):
    assert meanings(TABLE, page)["κ"] == "κ: kurtosis"
    assert meanings(TABLE, page)["N"] == "n, N: counts of x"


def test_no_mark_of_tex_is_left_in_the_meanings_of_the_book():
    found = meanings(NOTATION.read_text("utf-8"), "book/beyond")
    assert len(found) > 30
    assert [text for text in found.values() if re.search(r"[\\${}*`]", text)] == []
