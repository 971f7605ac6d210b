"""Checked exercises of the chapter on accelerating batch-normalized networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from bnbook.exercises._engine import Exercise, Mistake


def _moments(activation: Any) -> tuple[float, float]:
    """Mean and variance of an activation of a standard Gaussian, by Gauss-Hermite quadrature."""
    nodes, weight = np.polynomial.hermite_e.hermegauss(80)
    weight = weight / weight.sum()
    mean = float(weight @ activation(nodes))
    return mean, float(weight @ activation(nodes) ** 2) - mean**2


_MEAN, _VAR = _moments(lambda z: 1 / (1 + np.exp(-z)))
_SIGMOID = 2 + _MEAN**2 / _VAR  # at p = 0.5

EXERCISES = {
    1: Exercise(
        title="What does a small effect cost?",
        asks="seeds_needed(effect, s)",
        inputs=lambda: [{"effect": e, "s": s} for e, s in ((1.0, 1.0), (2.0, 1.0), (0.2, 3.0))],
        solution=lambda effect, s: 7.84 * (s / effect) ** 2,
        returns=("the number of pairs",),
        rtol=0.005,
        mistakes=(
            Mistake(
                "not squared",
                "The uncertainty falls with the root of n: half the effect needs four times the seeds.",
                lambda effect, s: 2.8 * s / effect,
            ),
            Mistake(
                "quantiles not squared",
                "The sum of the quantiles is squared as well.",
                lambda effect, s: 2.8 * (s / effect) ** 2,
            ),
            Mistake(
                "inverted", "A smaller effect needs more seeds.", lambda effect, s: 7.84 * (effect / s) ** 2
            ),
            Mistake(
                "power forgotten",
                "1.96 alone resolves the effect in half of the cases; add 0.84 for 80 %.",
                lambda effect, s: 1.96**2 * (s / effect) ** 2,
            ),
            Mistake(
                "squares of the quantiles added",
                "Add the quantiles, then square.",
                lambda effect, s: (1.96**2 + 0.84**2) * (s / effect) ** 2,
            ),
            Mistake(
                "unpaired runs",
                "s is that of the differences: there is no second variance, so no factor 2.",
                lambda effect, s: 2 * 7.84 * (s / effect) ** 2,
            ),
            Mistake(
                "variance taken for the standard deviation",
                "s is a standard deviation: square it.",
                lambda effect, s: 7.84 * s / effect**2,
            ),
        ),
    ),
    2: Exercise(
        title="Dropout behind a sigmoid",
        asks="the factors of sigmoid and tanh",
        solution=[_SIGMOID, 2.0],
        rtol=0.005,
        returns=("the factor of the sigmoid", "that of tanh"),
        mistakes=(
            Mistake(
                "mean forgotten", "Dropout acts on the mean as well: c^2 belongs into the factor.", [2.0, 2.0]
            ),
            Mistake(
                "inference over training", "The variance in training is the larger one.", [1 / _SIGMOID, 0.5]
            ),
            Mistake(
                "standard deviations", "This is the ratio of the widths; square it.", [_SIGMOID**0.5, 2**0.5]
            ),
            Mistake(
                "only the added variance",
                "Add the 1 for the variance that is there anyway.",
                [_SIGMOID - 1, 1.0],
            ),
            Mistake("sigmoid and tanh exchanged", "tanh has the mean 0.", [2.0, _SIGMOID]),
        ),
    ),
    4: Exercise(
        title="How long is a weight in balance?",
        asks="the factor between the two lengths",
        solution=4.0,
        rtol=0.01,
        returns=("the factor",),
        mistakes=(
            Mistake(
                "fourth root forgotten", "The fourth power of the length is proportional to the ratio.", 256
            ),
            Mistake("square root", "This is the ratio of the squared lengths.", 16),
            Mistake("inverted", "The larger rate and the smaller decay give the longer weights.", 0.25),
            Mistake("product of rate and decay", "The length depends on the ratio of rate and decay.", 1),
            Mistake("rate alone", "The decay differs as well.", 2),
        ),
    ),
}
