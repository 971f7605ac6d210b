"""Checked exercises of the chapter on covariate shift."""

from __future__ import annotations

import numpy as np

from bnbook.exercises._exercise import Exercise, Inputs


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


EXERCISES = {
    "what_stays": Exercise(
        title="Which shift is it?",
        asks="what_stays(p, q)",
        inputs=_tables,
        returns=("the set",),
        hints=(
            "p(x) sums the table over y, the columns. p(y|x) is the table over p(x).",
            "Write the four as functions of a table, and compare both tables with `np.allclose`.",
        ),
        solution="""
def what_stays(p, q):
    parts = {
        "p(x)": lambda t: t.sum(1),
        "p(y|x)": lambda t: t / t.sum(1, keepdims=True),
        "p(y)": lambda t: t.sum(0),
        "p(x|y)": lambda t: t / t.sum(0),
    }
    return {name for name, part in parts.items() if np.allclose(part(p), part(q))}
""",
        slips="""
rows and columns exchanged: Rows are x: p(x) sums over the columns, axis 1.
    part(p), part(q) => part(p.T), part(q.T)
conditionals exchanged: p(y|x) divides each row by its sum, p(x|y) each column.
    p(y|x) => p(?)
    p(x|y) => p(y|x)
    p(?) => p(x|y)
marginals exchanged: p(x) is what is left when y is summed out.
    "p(x)" => "p(?)"
    "p(y)" => "p(x)"
    "p(?)" => "p(y)"
joint instead of conditional: A conditional probability is the joint one over the marginal one.
    t / t.sum(1, keepdims=True) => t
    t / t.sum(0) => t
compared exactly: Rounding makes equal numbers differ in the last bit: compare with `np.allclose`.
    np.allclose(part(p), part(q)) => part(p).tobytes() == part(q).tobytes()
compared in the mean: All entries have to be equal, not only their mean or sum.
    part(p), part(q) => part(p).mean(), part(q).mean()
one equal entry is enough: All entries have to be equal.
    np.allclose(part(p), part(q)) => np.isclose(part(p), part(q)).any()
what changes instead of what stays: The set holds what is the same in both tables.
    if np => if not np
""",
    ),
    "black_pixel": Exercise(
        title="A camera that clips",
        asks="the mean of a black pixel",
        returns=("the mean",),
        rtol=0.015,
        hints=(
            "Clipping cuts the negative half of the noise off to 0.",
            "Integrate z times the density of a Gaussian of width 0.3 from 0 to infinity.",
        ),
        solution="""
tau = 0.3
mean = tau / np.sqrt(2 * np.pi)
""",
        slips="""
mean of the magnitude: The negative half is cut off to 0, not turned over, so it is half of this.
    mean = tau => mean = 2 * tau
mean of the noise before clipping: Clipping removes the negative half.
    = 0.0
standard deviation forgotten: The mean is proportional to the noise's 0.3.
    mean = tau => mean = 1
half of the standard deviation: Integrate z times the Gaussian density from 0.
    = 0.15
variance instead of standard deviation: The mean is proportional to 0.3, not to its square.
    mean = tau => mean = tau**2
""",
    ),
    "upside_down": None,
    "augment_instead": None,
}
