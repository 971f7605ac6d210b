"""Checked exercises of the chapter on covariate shift."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook.exercises._engine import Exercise, Inputs, Mistake

Array = NDArray[Any]
Parts = dict[str, Callable[[Array], Array]]

PARTS: Parts = {
    "p(x)": lambda t: t.sum(1),
    "p(y|x)": lambda t: t / t.sum(1, keepdims=True),
    "p(y)": lambda t: t.sum(0),
    "p(x|y)": lambda t: t / t.sum(0),
}


def _tables() -> list[Inputs]:
    p = np.array([[0.1, 0.3], [0.2, 0.4]])
    given_x, given_y = p / p.sum(1, keepdims=True), p / p.sum(0)
    wide = np.array([[0.1, 0.05, 0.25], [0.2, 0.3, 0.1]])
    return [
        {"p": p, "q": p},
        {"p": p, "q": np.array([[0.5], [0.5]]) * given_x},  # covariate shift
        {"p": p, "q": np.array([0.8, 0.2]) * given_y},  # label shift
        {"p": p, "q": np.array([[0.3, 0.1], [0.5, 0.1]])},  # concept shift
        {"p": p, "q": np.array([[0.2, 0.2], [0.1, 0.5]])},  # both marginals stay
        {"p": p, "q": p.T},
        {"p": p, "q": p[::-1, ::-1]},
        {"p": wide, "q": np.array([[0.7], [0.3]]) * wide / wide.sum(1, keepdims=True)},
        {"p": wide, "q": wide[:, [1, 0, 2]]},
    ]


def _stays(parts: Parts, same: Any = np.allclose) -> Any:
    def what_stays(p: Array, q: Array) -> set[str]:
        return {name for name, part in parts.items() if same(part(p), part(q))}

    return what_stays


def _bitwise(one: Array, other: Array) -> bool:
    return one.tobytes() == other.tobytes()


EXERCISES = {
    1: Exercise(
        title="Which shift is it?",
        asks="what_stays(p, q)",
        inputs=_tables,
        solution=_stays(PARTS),
        returns=("the set",),
        mistakes=(
            Mistake(
                "rows and columns exchanged",
                "Rows are x: p(x) sums over the columns, axis 1.",
                _stays(
                    dict(zip(PARTS, [PARTS[k] for k in ("p(y)", "p(x|y)", "p(x)", "p(y|x)")], strict=True))
                ),
            ),
            Mistake(
                "conditionals exchanged",
                "p(y|x) divides each row by its sum, p(x|y) each column.",
                _stays({**PARTS, "p(y|x)": PARTS["p(x|y)"], "p(x|y)": PARTS["p(y|x)"]}),
            ),
            Mistake(
                "marginals exchanged",
                "p(x) is what is left when y is summed out.",
                _stays({**PARTS, "p(x)": PARTS["p(y)"], "p(y)": PARTS["p(x)"]}),
            ),
            Mistake(
                "joint instead of conditional",
                "A conditional probability is the joint one over the marginal one.",
                _stays({**PARTS, "p(y|x)": lambda t: t, "p(x|y)": lambda t: t}),
            ),
            Mistake(
                "compared exactly",
                "Rounding makes equal numbers differ in the last bit: compare with `np.allclose`.",
                _stays(PARTS, _bitwise),
            ),
            Mistake(
                "compared in the mean",
                "All entries have to be equal, not only their mean or sum.",
                _stays(PARTS, lambda one, other: np.isclose(one.mean(), other.mean())),
            ),
            Mistake(
                "one equal entry is enough",
                "All entries have to be equal.",
                _stays(PARTS, lambda one, other: np.isclose(one, other).any()),
            ),
            Mistake(
                "what changes instead of what stays",
                "The set holds what is the same in both tables.",
                _stays(PARTS, lambda one, other: not np.allclose(one, other)),
            ),
        ),
    ),
    3: Exercise(
        title="A camera that clips",
        asks="the mean of a black pixel",
        solution=0.3 / math.sqrt(2 * math.pi),
        rtol=0.015,
        returns=("the mean",),
        mistakes=(
            Mistake(
                "mean of the magnitude",
                "The negative half is cut off to 0, not turned over: half of this.",
                0.6 / math.sqrt(2 * math.pi),
            ),
            Mistake("mean of the noise before clipping", "Clipping removes the negative half.", 0.0),
            Mistake(
                "standard deviation forgotten",
                "The mean is proportional to the noise's 0.3.",
                1 / math.sqrt(2 * math.pi),
            ),
            Mistake("half of the standard deviation", "Integrate z times the Gaussian density from 0.", 0.15),
            Mistake(
                "variance instead of standard deviation",
                "The mean is proportional to 0.3, not to its square.",
                0.09 / math.sqrt(2 * math.pi),
            ),
        ),
    ),
}
