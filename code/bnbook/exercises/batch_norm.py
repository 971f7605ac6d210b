"""Checked exercises of the chapter on the algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook import norms
from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

Array = NDArray[Any]


# --------------------------------------------------------------------------- 2: my_batch_norm


def _images() -> list[Inputs]:
    cases = []
    for k, (shape, eps, dtype) in enumerate(
        [
            ((2, 2, 1, 2), 0.1, np.float64),
            ((3, 2, 2, 2), 1e-5, np.float64),  # as many channels as columns
            ((2, 3, 4, 5), 0.5, np.float64),
            ((4, 3, 2, 5), 1e-5, np.float32),
        ]
    ):
        x = numbers(10 + k, *shape, dtype=dtype)
        x += 3
        gamma, beta = numbers(20 + k, 2, shape[1], dtype=dtype)
        cases.append({"x": x, "gamma": gamma, "beta": beta, "eps": eps})
    return cases


def _my_batch_norm(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    return norms.batch_norm(x, gamma, beta, eps)[0]


def _variant(
    x: Array,
    gamma: Array,
    beta: Array,
    eps: float,
    *,
    axes: tuple[int, ...] = (0, 2, 3),
    ddof: int = 0,
    centre: bool = True,
) -> Array:
    """Batch norm with another index set, another divisor of the variance, or no mean."""
    mean = x.mean(axes, keepdims=True)
    var = x.var(axes, keepdims=True, ddof=ddof)
    g, b = gamma.reshape(1, -1, 1, 1), beta.reshape(1, -1, 1, 1)
    y: Array = g * (x - mean * centre) / np.sqrt(var + eps) + b
    return y


def _scaled_by(divisor: Any) -> Any:
    """Batch norm with another divisor than the root of the variance plus eps."""

    def wrong(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
        axes = (0, 2, 3)
        centred = x - x.mean(axes, keepdims=True)
        scaled = centred / divisor(x.var(axes, keepdims=True), eps)
        y: Array = gamma.reshape(1, -1, 1, 1) * scaled + beta.reshape(1, -1, 1, 1)
        return y

    return wrong


def _eps_forgotten(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    return _variant(x, gamma, beta, 0.0)


def _fixed_eps(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    return _variant(x, gamma, beta, 1e-5)


def _without_affine(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    return _variant(x, np.ones_like(gamma), np.zeros_like(beta), eps)


def _without_gamma(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    return _variant(x, np.ones_like(gamma), beta, eps)


def _without_beta(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    return _variant(x, gamma, np.zeros_like(beta), eps)


def _beta_before_gamma(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    return _variant(x, gamma, gamma * beta, eps)


def _affine_along_columns(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    x_hat = _variant(x, np.ones_like(gamma), np.zeros_like(beta), eps)
    y: Array = gamma * x_hat + beta
    return y


def _in_place(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    x -= x.mean((0, 2, 3), keepdims=True)
    return _variant(x, gamma, beta, eps)


FOUR_DIMENSIONS = Exercise(
    title="Four dimensions",
    asks="my_batch_norm(x, gamma, beta, eps)",
    inputs=_images,
    solution=_my_batch_norm,
    returns=("y",),
    keeps_dtype=True,
    mistakes=(
        Mistake(
            "mean over the batch alone",
            "All positions of a channel belong to its index set: reduce the axes of the positions, too.",
            lambda x, gamma, beta, eps: _variant(x, gamma, beta, eps, axes=(0,)),
        ),
        Mistake(
            "mean over the positions alone",
            "This is instance norm: the examples of the batch belong to the index set of a channel, too.",
            lambda x, gamma, beta, eps: _variant(x, gamma, beta, eps, axes=(2, 3)),
        ),
        Mistake(
            "mean over all axes",
            "Every channel has a mean and a variance of its own: do not reduce the channel axis.",
            lambda x, gamma, beta, eps: _variant(x, gamma, beta, eps, axes=(0, 1, 2, 3)),
        ),
        Mistake(
            "mean over the channels",
            "This is layer norm: each example by itself. Batch norm has one mean for each channel.",
            lambda x, gamma, beta, eps: _variant(x, gamma, beta, eps, axes=(1, 2, 3)),
        ),
        Mistake(
            "channels taken from the last axis",
            "The images have the shape (N, C, H, W): the channels are axis 1.",
            lambda x, gamma, beta, eps: (
                gamma * _variant(x, np.ones(1), np.zeros(1), eps, axes=(0, 1, 2)) + beta
            ),
        ),
        Mistake(
            "unbiased variance",
            "The variance that normalizes a training batch divides by m, not by m - 1.",
            lambda x, gamma, beta, eps: _variant(x, gamma, beta, eps, ddof=1),
        ),
        Mistake(
            "eps outside the root",
            "The divisor is the root of (variance + eps), not the root of the variance plus eps.",
            _scaled_by(lambda var, eps: np.sqrt(var) + eps),
        ),
        Mistake(
            "eps forgotten",
            "Add eps to the variance: a channel whose values are all equal would be divided by zero.",
            _eps_forgotten,
        ),
        Mistake(
            "eps ignored",
            "The function has an argument eps; use it instead of a fixed 1e-5.",
            _fixed_eps,
        ),
        Mistake(
            "variance instead of standard deviation",
            "Divide by the root of the variance: only then has the output unit variance.",
            _scaled_by(lambda var, eps: var + eps),
        ),
        Mistake(
            "mean not subtracted",
            "The mean enters the variance, but the numerator is x - mean as well.",
            lambda x, gamma, beta, eps: _variant(x, gamma, beta, eps, centre=False),
        ),
        Mistake(
            "gamma and beta forgotten",
            "Scale and shift come last: y = gamma * x_hat + beta.",
            _without_affine,
        ),
        Mistake("gamma forgotten", "Multiply x_hat by the gamma of its channel.", _without_gamma),
        Mistake("beta forgotten", "Add the beta of the channel at the end.", _without_beta),
        Mistake(
            "beta inside the product", "gamma multiplies x_hat alone, not x_hat + beta.", _beta_before_gamma
        ),
        Mistake(
            "gamma and beta along the last axis",
            "An array of shape (C,) broadcasts along the last axis: give it the shape (1, C, 1, 1).",
            _affine_along_columns,
        ),
    ),
)

# --------------------------------------------------------------------------- 1 and 4: on paper

_ROOT = 3 * np.sqrt(2)

EXERCISES = {
    1: Exercise(
        title="By hand",
        asks="y, four numbers",
        solution=[1 - _ROOT, 1, 1, 1 + _ROOT],
        rtol=0.002,
        returns=("y",),
        mistakes=(
            Mistake(
                "unbiased variance",
                "The variance divides the sum of the squares by m = 4, not by 3.",
                [1 - 6 / np.sqrt(8 / 3), 1, 1, 1 + 6 / np.sqrt(8 / 3)],
            ),
            Mistake(
                "variance instead of standard deviation", "Divide by the root of the variance.", [-2, 1, 1, 4]
            ),
            Mistake(
                "gamma and beta forgotten",
                "This is x_hat. Multiply it by gamma and add beta.",
                [-np.sqrt(2), 0, 0, np.sqrt(2)],
            ),
            Mistake(
                "gamma forgotten", "Multiply x_hat by gamma = 3.", [1 - np.sqrt(2), 1, 1, 1 + np.sqrt(2)]
            ),
            Mistake("beta forgotten", "Add beta = 1.", [-_ROOT, 0, 0, _ROOT]),
            Mistake("beta inside the product", "gamma multiplies x_hat alone.", [3 - _ROOT, 3, 3, 3 + _ROOT]),
            Mistake(
                "not scaled", "This is x minus its mean; divide by the standard deviation.", [-5, 1, 1, 7]
            ),
        ),
    ),
    2: FOUR_DIMENSIONS,
    4: Exercise(
        title="The loudest possible example",
        asks="bound(m)",
        inputs=lambda: [{"m": m} for m in (2, 5, 17)],
        solution=lambda m: np.sqrt(m - 1),
        returns=("the bound",),
        mistakes=(
            Mistake(
                "bound not sharp: sqrt(m)",
                "All squares sum to m, that is true, but the others cannot all be zero: they sum to -t.",
                lambda m: np.sqrt(m),
            ),
            Mistake(
                "square of the bound", "This bounds the square of x_hat; take the root.", lambda m: m - 1
            ),
            Mistake(
                "unbiased variance",
                "This is the bound if the variance divides by m - 1; here it divides by m.",
                lambda m: (m - 1) / np.sqrt(m),
            ),
            Mistake(
                "no bound found", "There is one: all squares of x_hat sum to m at most.", lambda m: np.inf
            ),
            Mistake(
                "bound of a Gaussian",
                "Nothing is said about the distribution: the bound has to hold for any inputs.",
                lambda m: 3,
            ),
        ),
    ),
}
