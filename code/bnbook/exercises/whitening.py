"""Checked exercises of the chapter on whitening."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook import whitening
from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

Array = NDArray[Any]

# --------------------------------------------------------------------------- 1: on paper

BY_HAND = Exercise(
    title="By hand",
    asks="A_ZCA, a matrix of 2 x 2 numbers",
    solution=np.array([[2, -1], [-1, 2]]) / 3,
    rtol=0.005,
    returns=("A_ZCA",),
    mistakes=(
        Mistake(
            "PCA instead of ZCA",
            "This is A_PCA; ZCA turns the result back with the transposed axes.",
            np.array([[1 / 3, 1 / 3], [1, -1]]) / np.sqrt(2),
        ),
        Mistake(
            "inverse without the root",
            "This is the inverse of the covariance; whitening needs the inverse of its root.",
            np.array([[5, -4], [-4, 5]]) / 9,
        ),
        Mistake(
            "root without the inverse", "This is the root of the covariance; invert it.", [[2, 1], [1, 2]]
        ),
        Mistake("factor 1/3 forgotten", "The eigenvalues of A_ZCA are 1/3 and 1.", [[2, -1], [-1, 2]]),
        Mistake(
            "axes exchanged",
            "The larger variance, 9, is along (1, 1); that direction is divided by 3.",
            np.array([[2, 1], [1, 2]]) / 3,
        ),
        Mistake(
            "standardized, not whitened",
            "This gives each input unit variance; they are still correlated.",
            np.eye(2) / np.sqrt(5),
        ),
    ),
)


# --------------------------------------------------------------------------- 3: fit_cholesky


def _data() -> list[Inputs]:
    cases = []
    for k, (m, d) in enumerate([(3, 2), (5, 3), (8, 3)]):
        mix = np.eye(d) + np.tri(d) / 2
        cases.append({"x": numbers(150 + k, m, d) @ mix + 2})
    return cases


def _fit(x: Array, make: Any = None, ddof: int = 0, shift: bool = True) -> whitening.AffineMap:
    """The Cholesky map, or one with another matrix made from the covariance."""
    sigma = whitening.covariance(x, ddof)
    matrix = make(sigma) if make else np.linalg.inv(np.linalg.cholesky(sigma))
    return whitening.AffineMap(x.mean(0) * shift, matrix)


CHOLESKY = Exercise(
    title="A third whitening",
    asks="fit_cholesky(x)",
    inputs=_data,
    solution=_fit,
    observe=lambda fit, inputs: (fit.shift, fit.matrix),
    returns=("shift", "matrix"),
    rtol=1e-6,
    mistakes=(
        Mistake(
            "not inverted",
            "L has the covariance in it; its inverse takes it out.",
            lambda x: _fit(x, np.linalg.cholesky),
        ),
        Mistake(
            "transposed",
            "The map is z = A (x - mean) for column vectors: A = inverse of L, not of its transpose.",
            lambda x: _fit(x, lambda sigma: np.linalg.inv(np.linalg.cholesky(sigma)).T),
        ),
        Mistake(
            "factor of the inverse covariance",
            "This whitens as well, but it is another map: output i is what is new after the *later* inputs.",
            lambda x: _fit(x, lambda sigma: np.linalg.cholesky(np.linalg.inv(sigma)).T),
        ),
        Mistake(
            "ZCA",
            "This is the symmetric root. The exercise asks for the triangular one, of Cholesky.",
            lambda x: whitening.fit_zca_whitening(x),
        ),
        Mistake(
            "PCA",
            "This has the axes in its rows. The exercise asks for the triangular matrix of Cholesky.",
            lambda x: whitening.fit_pca_whitening(x),
        ),
        Mistake(
            "inverse covariance",
            "Whitening needs a root of the inverse covariance, not the inverse covariance itself.",
            lambda x: _fit(x, np.linalg.inv),
        ),
        Mistake(
            "mean not subtracted",
            "The shift of the map is the mean of the data.",
            lambda x: _fit(x, shift=False),
        ),
        Mistake(
            "unbiased covariance",
            "The covariance of this chapter divides by M, not by M - 1.",
            lambda x: _fit(x, ddof=1),
        ),
        Mistake(
            "not centred before the covariance",
            "The covariance is about the mean: subtract it before you multiply.",
            lambda x: _fit(x, lambda sigma: np.linalg.inv(np.linalg.cholesky(x.T @ x / len(x)))),
        ),
    ),
)


# --------------------------------------------------------------------------- 5: train_scale


def _units() -> list[Inputs]:
    cases = []
    for k, (m, lr, steps) in enumerate([(2, 0.5, 1), (4, 0.1, 3), (5, 0.01, 8)]):
        u = numbers(160 + k, m)
        u -= u.mean()
        cases.append({"u": u, "t": numbers(170 + k, m) + 2 * u, "lr": lr, "steps": steps})
    return cases


def _train_scale(u: Array, t: Array, lr: float, steps: int, slope: Any = None) -> Array:
    """The path of w, with the gradient of the exercise or another one, made from y, t, w and sigma."""
    w, path = 1.0, []
    for _ in range(steps):
        y = u / u.std()
        w -= lr * (slope(u, y, t, w) if slope else np.mean((y - t) * y) / w)
        path.append(w)
    return np.array(path)


def _sloped(slope: Any) -> Any:
    return lambda u, t, lr, steps: _train_scale(u, t, lr, steps, slope)


RUNS_AWAY = Exercise(
    title="The width that runs away",
    asks="train_scale(u, t, lr, steps)",
    inputs=_units,
    solution=_train_scale,
    returns=("the path of w",),
    mistakes=(
        Mistake(
            "true gradient",
            "Through the standard deviation as well, the gradient is zero. Here it is taken for a constant.",
            _sloped(lambda u, y, t, w: 0.0),
        ),
        Mistake(
            "sign flipped",
            "A step goes against the gradient.",
            _sloped(lambda u, y, t, w: -np.mean((y - t) * y) / w),
        ),
        Mistake(
            "1/w forgotten",
            "sigma contains |w|: the derivative of y by w is y / w if sigma is a constant.",
            _sloped(lambda u, y, t, w: np.mean((y - t) * y)),
        ),
        Mistake(
            "sum instead of mean",
            "The loss has a factor 1 / (2m).",
            _sloped(lambda u, y, t, w: np.sum((y - t) * y) / w),
        ),
        Mistake(
            "factor 2",
            "The loss has a factor 1/2, which the derivative of the square takes away.",
            _sloped(lambda u, y, t, w: 2 * np.mean((y - t) * y) / w),
        ),
        Mistake(
            "half of the gradient",
            "The factor 1/2 of the loss and the 2 of the square cancel.",
            _sloped(lambda u, y, t, w: np.mean((y - t) * y) / w / 2),
        ),
        Mistake(
            "width kept at its start",
            "sigma is a constant in the gradient only; in the forward pass it follows w.",
            _sloped(lambda u, y, t, w: np.mean((w * y - t) * y)),
        ),
        Mistake(
            "multiplied by the input",
            "The derivative of y by w is u / sigma, not u.",
            _sloped(lambda u, y, t, w: np.mean((y - t) * u)),
        ),
        Mistake(
            "path begins with the start",
            "The path holds w *after* each step: its first value is not 1.",
            lambda u, t, lr, steps: np.concatenate([[1.0], _train_scale(u, t, lr, steps)[:-1]]),
        ),
        Mistake(
            "path holds the start, too",
            "The path has one value for each step.",
            lambda u, t, lr, steps: np.concatenate([[1.0], _train_scale(u, t, lr, steps)]),
        ),
        Mistake(
            "last value alone",
            "Return w after each step, an array of `steps` values.",
            lambda u, t, lr, steps: _train_scale(u, t, lr, steps)[-1],
        ),
    ),
)

EXERCISES = {1: BY_HAND, 3: CHOLESKY, 5: RUNS_AWAY}
