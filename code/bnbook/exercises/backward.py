"""Checked exercises of the chapter on the backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnbook import norms
from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

Array = NDArray[Any]
Gradients = tuple[Array, Array, Array]


# --------------------------------------------------------------------------- 2: my_backward


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
        dy, x = numbers(30 + k, 2, *shape, dtype=dtype)
        gamma = numbers(40 + k, shape[1], dtype=dtype)
        x += 1
        cases.append({"dy": dy, "x": x, "gamma": gamma, "eps": eps})
    return cases


def _my_backward(dy: Array, x: Array, gamma: Array, eps: float) -> Gradients:
    return norms.batch_norm_backward(dy, norms.batch_norm(x, gamma, np.zeros_like(gamma), eps)[1])


def _variant(
    dy: Array,
    x: Array,
    gamma: Array,
    eps: float,
    *,
    axes: tuple[int, ...] = (0, 2, 3),
    through_mean: float = 1,
    through_var: float = 1,
    sums: bool = False,
    raw: bool = False,
    ddof: int = 0,
    power: float = 1,
    scaled: bool = True,
) -> Gradients:
    """The backward pass with a part of it left out, or taken over other axes."""
    g = gamma.reshape(1, -1, 1, 1)
    centred = x - x.mean(axes, keepdims=True)
    inv_std = 1 / np.sqrt(x.var(axes, keepdims=True, ddof=ddof) + eps)
    x_hat = centred * inv_std
    dx_hat = dy * g if scaled else dy
    m = x.size / inv_std.size if sums else 1
    along_one = m * dx_hat.mean(axes, keepdims=True)
    second = x * inv_std if raw else x_hat
    along_x_hat = m * (dx_hat * second).mean(axes, keepdims=True)
    dx = inv_std**power * (dx_hat - through_mean * along_one - through_var * x_hat * along_x_hat)
    return dx, (dy * x_hat).sum((0, 2, 3)), dy.sum((0, 2, 3))


def _with(**settings: Any) -> Any:
    return lambda dy, x, gamma, eps: _variant(dy, x, gamma, eps, **settings)


def _parameters(dgamma: Any = None, dbeta: Any = None) -> Any:
    """The right dx, with another dgamma or dbeta, made from dy, x, x_hat and gamma."""

    def wrong(dy: Array, x: Array, gamma: Array, eps: float) -> tuple[Any, ...]:
        dx, right_gamma, right_beta = _my_backward(dy, x, gamma, eps)
        x_hat = norms.batch_norm(x, np.ones_like(gamma), np.zeros_like(gamma), eps)[0]
        given = dy, x, x_hat, gamma
        return dx, dgamma(*given) if dgamma else right_gamma, dbeta(*given) if dbeta else right_beta

    return wrong


def _eps_outside(dy: Array, x: Array, gamma: Array, eps: float) -> Gradients:
    axes = (0, 2, 3)
    scale = (np.sqrt(x.var(axes) + 0) + eps).reshape(1, -1, 1, 1)
    x_hat = (x - x.mean(axes, keepdims=True)) / scale
    dx_hat = dy * gamma.reshape(1, -1, 1, 1)
    along = dx_hat.mean(axes, keepdims=True) + x_hat * (dx_hat * x_hat).mean(axes, keepdims=True)
    return (dx_hat - along) / scale, (dy * x_hat).sum(axes), dy.sum(axes)


def _gamma_along_columns(dy: Array, x: Array, gamma: Array, eps: float) -> Gradients:
    dx, _, _ = _variant(dy * gamma, x, np.ones(x.shape[1]), eps)
    return dx, *_my_backward(dy, x, gamma, eps)[1:]


def _mean_axes(*axes: int) -> Any:
    def wrong(dy: Array, x: Array, gamma: Array, eps: float) -> Gradients:
        return _variant(dy, x, gamma, eps, axes=axes)

    return wrong


FOUR_DIMENSIONS = Exercise(
    title="Four dimensions",
    asks="my_backward(dy, x, gamma, eps)",
    inputs=_images,
    solution=_my_backward,
    returns=("dx", "dgamma", "dbeta"),
    keeps_dtype=True,
    mistakes=(
        Mistake(
            "statistics taken as constants",
            "Mean and variance depend on every input: two more paths lead from the loss to x.",
            _with(through_mean=0, through_var=0),
        ),
        Mistake(
            "variance taken as a constant",
            "The path through the variance is missing: its term is along x_hat.",
            _with(through_var=0),
        ),
        Mistake(
            "mean taken as a constant",
            "The path through the mean is missing: its term is the mean of the gradient of x_hat.",
            _with(through_mean=0),
        ),
        Mistake(
            "lost 1/m",
            "Both corrections are means over the index set, not sums: divide by m.",
            _with(sums=True),
        ),
        Mistake(
            "divided by N instead of m",
            "The sums run over all positions as well: m is N times H times W.",
            lambda dy, x, gamma, eps: _variant(
                dy, x, gamma, eps, through_mean=x[0, 0].size, through_var=x[0, 0].size
            ),
        ),
        Mistake(
            "gamma twice",
            "The gradient of x_hat holds gamma already; nothing is multiplied by it again.",
            lambda dy, x, gamma, eps: (
                gamma.reshape(1, -1, 1, 1) * _my_backward(dy, x, gamma, eps)[0],
                *_my_backward(dy, x, gamma, eps)[1:],
            ),
        ),
        Mistake(
            "x for x - mean",
            "The second correction needs the gradient times x_hat, which is centred, not times x.",
            _with(raw=True),
        ),
        Mistake(
            "sign of the corrections",
            "Both corrections are subtracted: they take the parts along 1 and along x_hat out.",
            _with(through_mean=-1, through_var=-1),
        ),
        Mistake(
            "unbiased variance",
            "The variance of the forward pass divides by m, not by m - 1.",
            _with(ddof=1),
        ),
        Mistake(
            "eps outside the root",
            "The divisor is the root of (variance + eps), not the root of the variance plus eps.",
            _eps_outside,
        ),
        Mistake(
            "eps forgotten",
            "The forward pass adds eps to the variance; its gradient has to, too.",
            lambda dy, x, gamma, eps: _variant(dy, x, gamma, 0.0),
        ),
        Mistake(
            "divided by the variance",
            "dx has one factor 1 / sqrt(variance + eps); x_hat holds the others.",
            _with(power=2),
        ),
        Mistake(
            "not divided by the standard deviation",
            "dx has a factor 1 / sqrt(variance + eps).",
            _with(power=0),
        ),
        Mistake(
            "gamma forgotten",
            "The gradient of x_hat is dy times gamma; start from it.",
            _with(scaled=False),
        ),
        Mistake(
            "gamma along the last axis",
            "An array of shape (C,) broadcasts along the last axis: give gamma the shape (1, C, 1, 1).",
            _gamma_along_columns,
        ),
        Mistake(
            "means over the batch alone",
            "In four dimensions the index set of a channel holds all positions, too.",
            _mean_axes(0),
        ),
        Mistake(
            "means over all axes",
            "Every channel has its own statistics: leave the channel axis out of the reduction.",
            _mean_axes(0, 1, 2, 3),
        ),
        Mistake(
            "means over the positions alone",
            "This is the gradient of instance norm: the batch belongs to the index set, too.",
            _mean_axes(2, 3),
        ),
        Mistake(
            "dgamma with x instead of x_hat",
            "gamma multiplies x_hat, so its gradient is the sum of dy times x_hat.",
            _parameters(dgamma=lambda dy, x, x_hat, gamma: (dy * x).sum((0, 2, 3))),
        ),
        Mistake(
            "dgamma holds gamma",
            "y is linear in gamma: its derivative is x_hat, without gamma.",
            _parameters(dgamma=lambda dy, x, x_hat, gamma: gamma * (dy * x_hat).sum((0, 2, 3))),
        ),
        Mistake(
            "dgamma averaged",
            "gamma acts on every value of its channel, and these contributions are summed.",
            _parameters(dgamma=lambda dy, x, x_hat, gamma: (dy * x_hat).mean((0, 2, 3))),
        ),
        Mistake(
            "dbeta averaged",
            "beta acts on every value of its channel, and these contributions are summed.",
            _parameters(dbeta=lambda dy, x, x_hat, gamma: dy.mean((0, 2, 3))),
        ),
        Mistake(
            "dbeta holds gamma",
            "beta is added after gamma: its gradient is the sum of dy alone.",
            _parameters(dbeta=lambda dy, x, x_hat, gamma: gamma * dy.sum((0, 2, 3))),
        ),
        Mistake(
            "dgamma and dbeta not summed over the positions",
            "A channel has one gamma and one beta for all positions: sum over them, too.",
            _parameters(
                dgamma=lambda dy, x, x_hat, gamma: (dy * x_hat).sum(0),
                dbeta=lambda dy, x, x_hat, gamma: dy.sum(0),
            ),
        ),
        Mistake(
            "dgamma and dbeta summed over the channels, too",
            "Each channel has its own gamma and beta: leave the channel axis out of the sum.",
            _parameters(
                dgamma=lambda dy, x, x_hat, gamma: (dy * x_hat).sum(),
                dbeta=lambda dy, x, x_hat, gamma: dy.sum(),
            ),
        ),
        Mistake(
            "dgamma and dbeta exchanged",
            "The order is dx, dgamma, dbeta.",
            _parameters(
                dgamma=lambda dy, x, x_hat, gamma: dy.sum((0, 2, 3)),
                dbeta=lambda dy, x, x_hat, gamma: (dy * x_hat).sum((0, 2, 3)),
            ),
        ),
    ),
)


# --------------------------------------------------------------------------- 3: backward_from_output


def _outputs() -> list[Inputs]:
    cases = []
    for k, (m, channels) in enumerate([(3, 1), (4, 2), (6, 3)]):
        dy, x = numbers(50 + k, 2, m, channels)
        gamma, beta = numbers(60 + k, 2, channels)
        y, cache = norms.batch_norm(x, gamma, beta)
        cases.append({"dy": dy, "y": y, "gamma": gamma, "beta": beta, "inv_std": cache.inv_std})
    return cases


def _from_output(
    dy: Array, y: Array, gamma: Array, beta: Array, inv_std: Array, *, given: Any = None, last: Any = None
) -> Array:
    """The gradient, with x_hat and the gradient of x_hat made from y in another way."""
    x_hat = given(y, gamma, beta) if given else (y - beta) / gamma
    dx_hat = dy * gamma if last is None else last(dy, gamma)
    dx: Array = inv_std * (dx_hat - dx_hat.mean(0) - x_hat * (dx_hat * x_hat).mean(0))
    return dx


def _from(given: Any = None, last: Any = None) -> Any:
    return lambda *arguments: _from_output(*arguments, given=given, last=last)


NOTHING_KEPT = Exercise(
    title="Nothing kept",
    asks="backward_from_output(dy, y, gamma, beta, inv_std)",
    inputs=_outputs,
    solution=_from_output,
    returns=("dx",),
    mistakes=(
        Mistake("y for x_hat", "Solve y = gamma * x_hat + beta for x_hat.", _from(lambda y, gamma, beta: y)),
        Mistake(
            "beta not subtracted",
            "y = gamma * x_hat + beta: take beta off first.",
            _from(lambda y, gamma, beta: y / gamma),
        ),
        Mistake(
            "not divided by gamma",
            "What is left after beta is gamma * x_hat.",
            _from(lambda y, gamma, beta: y - beta),
        ),
        Mistake(
            "gamma forgotten",
            "The gradient of x_hat is dy * gamma.",
            _from(last=lambda dy, gamma: dy),
        ),
        Mistake(
            "divided by gamma twice",
            "x_hat is divided by gamma, but the gradient of x_hat is dy *multiplied* by gamma.",
            _from(last=lambda dy, gamma: dy / gamma),
        ),
        Mistake(
            "statistics taken as constants",
            "Mean and variance depend on every input: two more paths lead from the loss to x.",
            lambda dy, y, gamma, beta, inv_std: dy * gamma * inv_std,
        ),
        Mistake(
            "lost 1/m",
            "Both corrections are means over the batch, not sums.",
            lambda dy, y, gamma, beta, inv_std: (
                inv_std * gamma * (dy - dy.sum(0) - (y - beta) / gamma * (dy * (y - beta) / gamma).sum(0))
            ),
        ),
        Mistake(
            "multiplied by the standard deviation",
            "inv_std is one over the standard deviation already: multiply by it.",
            lambda dy, y, gamma, beta, inv_std: _from_output(dy, y, gamma, beta, 1 / inv_std),
        ),
        Mistake(
            "1 / std forgotten",
            "x_hat = (x - mean) * inv_std, so the factor inv_std stands in dx.",
            lambda dy, y, gamma, beta, inv_std: _from_output(dy, y, gamma, beta, np.ones_like(inv_std)),
        ),
    ),
)


# --------------------------------------------------------------------------- 5: layer_norm_dx


def _rows() -> list[Inputs]:
    cases = []
    for k, (shape, eps) in enumerate([((2, 3), 0.1), ((3, 3), 1e-5), ((4, 6), 0.5)]):
        dy, x = numbers(70 + k, 2, *shape)
        cases.append({"dy": dy, "x": x, "eps": eps})
    return cases


def _dx(dy: Array, x: Array, eps: float) -> Array:
    ones = np.ones(x.shape[1])
    return norms.batch_norm_backward(dy, norms.batch_norm(x, ones, 0 * ones, eps)[1])[0]


def _layer_norm_dx(dy: Array, x: Array, eps: float) -> Array:
    ones = np.ones(x.shape[1])
    return norms.layer_norm_backward(dy, norms.layer_norm(x, ones, 0 * ones, eps)[1])[0]


def _rms_norm_dx(dy: Array, x: Array, eps: float) -> Array:
    return norms.rms_norm_backward(dy, norms.rms_norm(x, np.ones(x.shape[1]), eps)[1])[0]


def _dy_not_transposed(dy: Array, x: Array, eps: float) -> Array:
    return _dx(dy, x.T, eps).T


ANOTHER_INDEX_SET = Exercise(
    title="Another index set",
    asks="layer_norm_dx(dy, x, eps)",
    inputs=_rows,
    solution=_layer_norm_dx,
    returns=("dx",),
    mistakes=(
        Mistake(
            "gradient of batch norm",
            "This normalizes the columns. Layer norm normalizes each row: what takes the channels' place?",
            _dx,
        ),
        Mistake(
            "not transposed back",
            "The result has the shape of the transposed input: transpose it back.",
            lambda dy, x, eps: _dx(dy.T, x.T, eps),
        ),
        Mistake(
            "dy not transposed",
            "x was transposed, and dy was not: it needs the shape of x.",
            _dy_not_transposed,
        ),
        Mistake(
            "gradient of RMS norm",
            "Layer norm subtracts the mean, so a second component is taken out.",
            _rms_norm_dx,
        ),
        Mistake(
            "eps ignored",
            "Pass eps on to the forward pass.",
            lambda dy, x, eps: _layer_norm_dx(dy, x, 1e-5),
        ),
        Mistake(
            "statistics taken as constants",
            "Each row's mean and standard deviation depend on the row.",
            lambda dy, x, eps: dy / np.sqrt(x.var(1, keepdims=True) + eps),
        ),
    ),
)

# --------------------------------------------------------------------------- 1: on paper

_DX = np.sqrt(1.5) / 6 * np.array([1, -2, 1])

EXERCISES = {
    1: Exercise(
        title="By hand",
        asks="dx for dy = (1, 0, 0), three numbers",
        solution=_DX,
        rtol=0.005,
        returns=("dx",),
        mistakes=(
            Mistake(
                "statistics taken as constants",
                "Mean and variance depend on the inputs: two more terms belong into the bracket.",
                [np.sqrt(1.5), 0, 0],
            ),
            Mistake(
                "variance taken as a constant",
                "The term along x_hat is missing.",
                np.sqrt(1.5) / 3 * np.array([2, -1, -1]),
            ),
            Mistake(
                "mean taken as a constant",
                "The mean of dy has to be subtracted as well.",
                np.sqrt(1.5) * np.array([0.5, 0, 0.5]),
            ),
            Mistake(
                "lost 1/m",
                "Both corrections are means over the three inputs, not sums.",
                np.sqrt(1.5) * np.array([-1.5, -1, 0.5]),
            ),
            Mistake(
                "not divided by the standard deviation",
                "This is the bracket; it is multiplied by 1 / sqrt(variance).",
                np.array([1, -2, 1]) / 6,
            ),
            Mistake(
                "unbiased variance",
                "The variance is 2/3: divide by m = 3, not by 2.",
                np.array([1 - 1 / 3 - 1 / 3, -1 / 3, -1 / 3 + 1 / 3]),
            ),
            Mistake("answer for dy = (1, 2, 3)", "Check the other one first: dy = (1, 0, 0).", [0, 0, 0]),
        ),
    ),
    2: FOUR_DIMENSIONS,
    3: NOTHING_KEPT,
    5: ANOTHER_INDEX_SET,
}
