"""Checked exercises of the chapter on scale invariance."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnbook.exercises._engine import Exercise, Mistake


def _finite(m: int, r: Any = None, v: Any = None, q: Any = None, last: float = 1, root: bool = True) -> float:
    """The factor of a ReLU layer at batch size m, or one with a part of the formula changed."""
    corr = -1 / (m - 1) if r is None else r(m)
    e = 2 / np.pi * (np.sqrt(1 - corr**2) + corr * np.arcsin(corr))
    spread = 0.5 - (1 / m + (m - 1) / m * e) / 4 if v is None else v(m, e)
    both = 0.25 + np.arcsin(corr) / (2 * np.pi) if q is None else q(corr)
    ratio = (m - 1) / ((m - 3) * spread) * ((m - 1) / (2 * m) + both / m) - last / (m - 3)
    return float(np.sqrt(ratio) if root else ratio)


def _changed(**settings: Any) -> Any:
    return lambda m: _finite(m, **settings)


EXERCISES = {
    2: Exercise(
        title="Adam",
        asks="twin_rate(a, lr)",
        inputs=lambda: [{"a": a, "lr": lr} for a, lr in ((2.0, 0.5), (4.0, 0.01), (0.5, 0.1))],
        solution=lambda a, lr: a * lr,
        returns=("the rate",),
        mistakes=(
            Mistake(
                "rate of SGD",
                "SGD's step shrinks with the gradient, by 1/a; Adam's does not see a factor of it.",
                lambda a, lr: a**2 * lr,
            ),
            Mistake(
                "same rate",
                "The weights are a times as long, so the steps have to be, too.",
                lambda a, lr: lr,
            ),
            Mistake(
                "inverted",
                "Longer weights need longer steps: the rate grows with a.",
                lambda a, lr: lr / a,
            ),
            Mistake(
                "root of a",
                "Adam divides by the root of the *squared* gradient: a factor of the gradient is gone.",
                lambda a, lr: np.sqrt(a) * lr,
            ),
        ),
    ),
    4: Exercise(
        title="A finite batch",
        asks="finite(m)",
        inputs=lambda: [{"m": m} for m in (4, 8, 16)],
        solution=_finite,
        returns=("the factor",),
        mistakes=(
            Mistake(
                "root forgotten",
                "The factor is for the length; the formula is for its square.",
                _changed(root=False),
            ),
            Mistake(
                "r positive",
                "Two values of a unit sum to less than zero on average: r is negative.",
                _changed(r=lambda m: 1 / (m - 1)),
            ),
            Mistake("r with m for m - 1", "r = -1 / (m - 1).", _changed(r=lambda m: -1 / m)),
            Mistake("last term forgotten", "1 / (m - 3) is subtracted at the end.", _changed(last=0)),
            Mistake("last term added", "1 / (m - 3) is subtracted at the end.", _changed(last=-1)),
            Mistake(
                "v of an infinite batch",
                "v depends on m as well.",
                _changed(v=lambda m, e: 0.5 - 0.5 / np.pi),
            ),
            Mistake(
                "1/m in v forgotten",
                "A value and itself contribute 1/m to the mean of the products.",
                _changed(v=lambda m, e: 0.5 - (m - 1) / m * e / 4),
            ),
            Mistake(
                "q = 1/4", "Two values of a unit are correlated: q depends on r.", _changed(q=lambda r: 0.25)
            ),
            Mistake(
                "limit for all m",
                "The factor has to depend on m.",
                lambda m: np.sqrt(0.5 / (0.5 - 0.5 / np.pi)),
            ),
        ),
    ),
}
