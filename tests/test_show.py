import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnbook import norms, show

SANITIZER = re.search(r"^regex: (.*)$", Path(__file__).with_name("sanitize.cfg").read_text("utf-8"), re.M)[1]


@given(st.floats(-1e300, 1e300), st.integers(1, 6))
def test_a_measured_number_reads_back_to_the_digits_that_it_shows(value, digits):
    text = show.approx(value, digits)
    assert text.startswith("≈")
    assert float(text[1:]) == pytest.approx(value, rel=0.5 * 10.0 ** (1 - digits) * 1.01, abs=0)


@given(st.floats(-1e300, 1e300), st.integers(1, 6))
def test_the_notebook_tests_skip_a_measured_number_as_a_whole(value, digits):
    assert re.sub(SANITIZER, "", show.approx(value, digits)) == ""


def test_the_notebook_tests_skip_nothing_but_marked_numbers():
    text = "3.1 and 7e-5, ≈2.5, x ≈ 3; ≈nan"
    assert re.sub(SANITIZER, "#", text) == "3.1 and 7e-5, #, x ≈ 3; ≈nan"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_gets_no_mark_since_no_test_may_skip_it(value):
    assert show.approx(value) == str(value)


def test_a_measured_number_below_one_significant_digit_is_refused():
    with pytest.raises(ValueError, match="digits: got 0, expected a whole number, 1 or more"):
        show.approx(1.0, 0)


def test_several_runs_are_shown_as_median_smallest_and_largest():
    assert show.spread([3, 1, 2, 10]) == "≈2.5 [≈1, ≈10]"
    assert show.spread([4.0]) == "≈4"
    with pytest.raises(ValueError, match="values: got none"):
        show.spread([])


@pytest.fixture
def shown(monkeypatch):
    """The texts that are displayed."""
    texts = []
    monkeypatch.setattr(show, "display", lambda markdown: texts.append(markdown.data))
    return texts


def test_a_table_has_no_padding_that_could_depend_on_a_measured_number(shown):
    show.show_table(["m", "error"], [[2, "≈10.1"], [32, "≈9.9"]])
    assert shown == ["| m | error |\n| --- | --- |\n| 2 | ≈10.1 |\n| 32 | ≈9.9 |"]


def test_a_table_row_of_another_length_is_refused(shown):
    with pytest.raises(ValueError, match=r"rows: got a row of 1 entries, expected 2: \[1\]"):
        show.show_table(["a", "b"], [[1]])


def test_a_column_without_a_name_is_refused(shown):
    with pytest.raises(ValueError, match=r"header: got \['', 'error'\], every column needs a name"):
        show.show_table(["", "error"], [])


def code_of(text):
    """The program in a listing."""
    return re.fullmatch(r"```python\n(.*)\n```(?:\n\n\*\(argument checks left out\)\*)?", text, re.DOTALL)[1]


def test_shown_source_is_the_code_that_runs_without_the_long_docstring(shown):
    show.show_source(norms.batch_norm, norms.RunningStats)
    function, cls = map(code_of, shown)
    assert function.startswith("def batch_norm(")
    assert "return gamma * x_hat + beta" in function
    assert "Parameters" not in function + cls
    assert '"""Batch normalizing transform, in training ([ioffe2015]_, Algorithm 1)."""' in function
    # What is left must still be the same program.
    namespace = dict(vars(norms))
    exec(function, namespace)
    x = np.random.default_rng(0).normal(size=(5, 3))
    expected, _ = norms.batch_norm(x, np.ones(3), np.zeros(3))
    np.testing.assert_array_equal(namespace["batch_norm"](x, np.ones(3), np.zeros(3))[0], expected)


def checked(self, x, axes):
    """Halve.

    The rest of the docstring.
    """
    check_examples(x)  # noqa: F821
    self.check_width(
        x,
        axes,
    )
    for axis in axes:
        if axis > 3:
            raise ValueError("axes: too large")
    if x is None:
        raise TypeError(
            "x: missing",
        )
    if x < 0:
        x = -x
        check_examples(x)  # noqa: F821
    elif x == 7:
        raise ValueError("x: seven")
    y = check_something(x)  # noqa: F821
    raise_to = x.check(y)
    return raise_to / 2


def unchecked(x):
    """Halve."""
    return x / 2


def test_a_listing_leaves_out_what_only_checks_and_says_so(shown):
    show.show_source(checked, unchecked)
    assert shown == [
        """```python
def checked(self, x, axes):
    \"""Halve.\"""
    if x < 0:
        x = -x
    elif x == 7:
        raise ValueError("x: seven")
    y = check_something(x)  # noqa: F821
    raise_to = x.check(y)
    return raise_to / 2
```

*(argument checks left out)*""",
        '```python\ndef unchecked(x):\n    """Halve."""\n    return x / 2\n```',
    ]


def test_batch_norm_is_shown_as_its_five_lines_of_mathematics(shown):
    show.show_source(norms.batch_norm)
    assert code_of(shown[0]).splitlines()[2:] == [
        "    axes = (0, *range(2, x.ndim))",
        "    x_hat, inv_std = standardize(x, axes, eps)",
        "    gamma, beta = along_channels(x, gamma, beta)",
        "    return gamma * x_hat + beta, Cache(x_hat, inv_std, gamma, axes, axes, x.shape)",
    ]
