"""What stands over a symbol of a formula."""

import re

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
    found = meanings(TABLE)[""]
    assert found[key(r"\mu_B")] == found[key(r"\sigma_B^2")] == "μB, σB²: mean and biased variance, over N"
    assert found["κ"] == "κ: condition number λ_max"


def test_a_number_is_no_symbol():
    assert "1" not in meanings(TABLE)[""]


def test_each_chapter_of_a_row_has_its_letters():
    assert meanings(TABLE)["one"] == meanings(TABLE)["two"]
    assert meanings(TABLE)["one"]["κ"] == "κ: kurtosis"
    assert meanings(TABLE)["one"]["N"] == "n, N: counts of x"


def test_no_mark_of_tex_is_left_in_the_meanings_of_the_book():
    found = meanings(NOTATION.read_text("utf-8"))
    assert len(found[""]) > 30
    texts = [text for letters in found.values() for text in letters.values()]
    assert [text for text in texts if re.search(r"[\\${}*`]", text)] == []
