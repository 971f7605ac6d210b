"""Checks: what is allowed passes, and a message names the argument, what came and what is allowed."""

import math

import numpy as np
import pytest
import torch

from bnbook import _checks as c

X = np.ones((4, 3))
GOOD = {
    "choice": lambda: c.check_choice(("a", "b"), name="b"),
    "whole": lambda: c.check_whole(0, 3, n=np.int64(3), m=0),
    "finite": lambda: c.check_finite(a=-1.5, b=np.float32(2), c=torch.tensor(3.0)),
    "not negative": lambda: c.check_not_negative(a=0, b=1e300),
    "positive": lambda: c.check_positive(a=5e-324),
    "floats": lambda: c.check_floats(x=X, y=np.float32(1)),
    "alike": lambda: c.check_alike(theta=X, grad=X),
    "several": lambda: c.check_several(torch.ones(2, 1), (0,), "channel"),
    "count": lambda: c.check_count(2, X, "channel"),
    "variance": lambda: c.check_variance(np.zeros(2), 1e-5),
}
BAD = {
    "name: got 'c', allowed are a, b": lambda: c.check_choice(("a", "b"), name="c"),
    "name: got ['a'], allowed are a": lambda: c.check_choice({"a": 1}, name=["a"]),
    "n: got 4, expected a whole number from 0 to 3": lambda: c.check_whole(0, 3, n=4),
    "n: got -1, expected a whole number, 0 or more": lambda: c.check_whole(0, n=np.int64(-1)),
    "n: got 1.0, expected a whole number": lambda: c.check_whole(-math.inf, n=1.0),
    "n: got None, expected a whole number, 1 or more": lambda: c.check_whole(1, n=None),
    "b: got nan, expected a finite number": lambda: c.check_finite(a=1, b=np.float64("nan")),
    "a: got '1', expected a finite number": lambda: c.check_finite(a="1"),
    "a: got -0.5, expected a finite number, 0 or larger": lambda: c.check_not_negative(a=-0.5),
    "a: got nan, expected a finite number, 0 or larger": lambda: c.check_not_negative(a=math.nan),
    "a: got 0, expected a finite number above 0": lambda: c.check_positive(a=0),
    "a: got inf, expected a finite number above 0": lambda: c.check_positive(a=math.inf),
    "a: got [1, 2], expected a finite number above 0": lambda: c.check_positive(a=[1, 2]),
    "x: got list, expected a NumPy array": lambda: c.check_floats(x=[1.0]),
    "x: got Tensor, expected a NumPy array": lambda: c.check_floats(x=torch.ones(2)),
    "x: got NaN or infinity in 1 of 2 values, all must be finite": lambda: c.check_floats(
        x=np.array([1, np.inf])
    ),
    "grad: got shape (3, 4), expected that of theta, (4, 3)": lambda: c.check_alike(theta=X, grad=X.T),
    "weight: got 1 weight per filter (shape (5, 1)), at least 2 are needed: one weight is its own mean, "
    "so nothing of it would be left": lambda: c.check_count(
        1, torch.ones(5, 1), "filter", name="weight", unit="weight"
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_allowed_passes_and_nothing_comes_back(name):
    assert GOOD[name]() is None


@pytest.mark.parametrize("message", BAD)
def test_what_is_not_allowed_is_named(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        BAD[message]()
    assert str(error.value) == message
