"""Checked exercises of the chapter on internal covariate shift."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

Array = NDArray[Any]
State = tuple[Array, Array, Array]


def _layers() -> list[Inputs]:
    cases = []
    for k, (units, inputs, images) in enumerate([(1, 1, 2), (2, 2, 2), (3, 2, 4)]):
        states = [
            (numbers(s, units, inputs), numbers(s + 1, units), numbers(s + 2, images, inputs) + 1)
            for s in (210 + 10 * k, 215 + 10 * k)
        ]
        cases.append({"old": states[0], "new": states[1]})
    W, b, X = cases[1]["old"]
    return [*cases, {"old": (W, b, X), "new": (W + 0.5, b, X)}, {"old": (W, b, X), "new": (W, b, X + 0.5)}]


def _share(old: State, new: State, weights: Any = None, share: Any = None, bias: bool = True) -> Any:
    """The share from below, with other weights for the movement of the inputs, or another quotient."""
    (W0, b0, X0), (W1, b1, X1) = old, new
    below = (X1 - X0) @ (weights(W0, W1) if weights else (W0 + W1) / 2).T
    whole = X1 @ W1.T - X0 @ W0.T + (b1 - b0) * bias
    return share(below, whole) if share else (below * whole).sum() / (whole**2).sum()


def _shared(**settings: Any) -> Any:
    return lambda old, new: _share(old, new, **settings)


def _T(z: float) -> float:
    return 2 * z + math.exp(z) - math.exp(-z)


EXERCISES = {
    1: Exercise(
        title="A product of weights",
        asks="the new y for 0.1 and for -0.1, two numbers",
        solution=[0.9**10, 1.1**10],
        rtol=0.002,
        returns=("y for 0.1", "y for -0.1"),
        mistakes=(
            Mistake("single steps added up", "All weights move at once: their product changes.", [0.0, 2.0]),
            Mistake(
                "sign flipped", "A gradient step subtracts the rate times the gradient.", [1.1**10, 0.9**10]
            ),
            Mistake("one weight moved", "All ten weights take a step.", [0.9, 1.1]),
            Mistake("change of y", "This is the change; y itself started at 1.", [0.9**10 - 1, 1.1**10 - 1]),
            Mistake("nine layers", "The product has ten factors.", [0.9**9, 1.1**9]),
        ),
    ),
    2: Exercise(
        title="The way back",
        asks="the number of steps of the sigmoid",
        solution=round(1000 * _T(3)),
        rtol=0.01,
        returns=("the number of steps",),
        mistakes=(
            Mistake("time instead of steps", "A step is 0.001 of it.", _T(3)),
            Mistake("unit of tanh", "This is the number of tanh; check the sigmoid's.", 125 * _T(6)),
            Mistake(
                "slope of the start throughout",
                "The slope grows on the way back to 0: integrate one over it.",
                3000 * (2 + math.exp(3) + math.exp(-3)),
            ),
            Mistake(
                "slope at zero throughout",
                "Only near 0 the slope is 1/4; at 3 it is far smaller.",
                12_000,
            ),
            Mistake(
                "sigmoid instead of its slope",
                "A step is 0.001 times the *derivative* of the sigmoid.",
                1000 * (3 + 1 - math.exp(-3)),
            ),
            Mistake("term 2z forgotten", "One over the slope is 2 + exp(z) + exp(-z).", 1000 * (_T(3) - 6)),
        ),
    ),
    3: Exercise(
        title="All images instead of their mean",
        asks="below_share(old, new)",
        inputs=_layers,
        solution=_share,
        returns=("the share",),
        mistakes=(
            Mistake(
                "old weights for the inputs",
                "The split is symmetric: the inputs' movement is multiplied by the mean of both weights.",
                _shared(weights=lambda W0, W1: W0),
            ),
            Mistake(
                "new weights for the inputs",
                "The split is symmetric: the inputs' movement is multiplied by the mean of both weights.",
                _shared(weights=lambda W0, W1: W1),
            ),
            Mistake(
                "sum of the weights",
                "Take the mean of both weights: half of their sum.",
                _shared(weights=lambda W0, W1: W0 + W1),
            ),
            Mistake(
                "share of the squares",
                "The two parts are not orthogonal: multiply the part from below by the whole movement.",
                _shared(share=lambda below, whole: (below**2).sum() / (whole**2).sum()),
            ),
            Mistake(
                "share of the lengths",
                "The two parts are not orthogonal: multiply the part from below by the whole movement.",
                _shared(share=lambda below, whole: np.sqrt((below**2).sum() / (whole**2).sum())),
            ),
            Mistake(
                "cosine",
                "Divide by the squared length of the whole movement, not by both lengths.",
                _shared(
                    share=lambda below, whole: (
                        (below * whole).sum() / np.sqrt((below**2).sum() * (whole**2).sum())
                    )
                ),
            ),
            Mistake(
                "share from the layer itself",
                "This is the share of the layer's own weights and biases: 1 minus what is asked.",
                lambda old, new: 1 - _share(old, new),
            ),
            Mistake(
                "bias forgotten",
                "The bias moves u as well: it belongs to the whole movement.",
                _shared(bias=False),
            ),
            Mistake(
                "movement of the mean",
                "Sum over the images, instead of taking their mean first.",
                _shared(
                    share=lambda below, whole: (
                        (below.mean(0) * whole.mean(0)).sum() / (whole.mean(0) ** 2).sum()
                    )
                ),
            ),
            Mistake(
                "mean of quotients",
                "Sum over images and units in numerator and denominator, then divide once.",
                _shared(share=lambda below, whole: (below / whole).mean()),
            ),
            Mistake(
                "one share a unit",
                "Sum over the units as well: a single number.",
                _shared(share=lambda below, whole: (below * whole).sum(0) / (whole**2).sum(0)),
            ),
        ),
    ),
}
