"""Checked exercises of the chapter on inference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

Array = NDArray[Any]


# --------------------------------------------------------------------------- 1: memory


def _memory(alpha: float) -> tuple[int, int]:
    keep = 1 - alpha
    return math.floor(math.log(0.01) / math.log(keep)) + 1, math.ceil(math.log(0.1) / math.log(keep))


def _memory_of(keep: Any = None, first: Any = None, second: Any = None) -> Any:
    """Steps and batches from another weight of the old value, or another rule for one of the two."""

    def wrong(alpha: float) -> tuple[Any, Any]:
        log = math.log(keep(alpha) if keep else 1 - alpha)
        steps = first(alpha, log) if first else math.floor(math.log(0.01) / log) + 1
        return steps, second(alpha, log) if second else math.ceil(math.log(0.1) / log)

    return wrong


TRANSLATE = Exercise(
    title="Translate a momentum",
    asks="memory(alpha)",
    inputs=lambda: [{"alpha": alpha} for alpha in (0.5, 0.1, 0.01, 0.001)],
    solution=_memory,
    returns=("steps", "batches"),
    rtol=0,
    atol=1e-9,
    mistakes=(
        Mistake(
            "momentum reversed",
            "In PyTorch the old value keeps the weight 1 - alpha; alpha weighs the new one.",
            _memory_of(keep=lambda alpha: alpha),
        ),
        Mistake(
            "not rounded",
            "Steps are whole numbers: the first one at which the condition holds.",
            _memory_of(
                first=lambda alpha, log: math.log(0.01) / log, second=lambda alpha, log: math.log(0.1) / log
            ),
        ),
        Mistake(
            "one step too few",
            "Round up: after the rounded-down number the condition does not hold yet.",
            _memory_of(
                first=lambda alpha, log: math.floor(math.log(0.01) / log),
                second=lambda alpha, log: math.floor(math.log(0.1) / log),
            ),
        ),
        Mistake(
            "90 % instead of the 10 % that are left",
            "The newest k batches carry 1 - (1 - alpha)^k, so 10 % are left to the older ones.",
            _memory_of(second=lambda alpha, log: math.ceil(math.log(0.9) / log)),
        ),
        Mistake(
            "99 % instead of 1 %",
            "The weight of the start, (1 - alpha)^t, has to fall below 0.01.",
            _memory_of(first=lambda alpha, log: math.floor(math.log(0.99) / log) + 1),
        ),
        Mistake(
            "approximation for small alpha",
            "log(1 - alpha) is about -alpha only for small alpha; use the logarithm itself.",
            _memory_of(
                first=lambda alpha, log: math.floor(math.log(100) / alpha) + 1,
                second=lambda alpha, log: math.ceil(math.log(10) / alpha),
            ),
        ),
        Mistake("steps and batches exchanged", "The steps come first.", lambda alpha: _memory(alpha)[::-1]),
    ),
)


# --------------------------------------------------------------------------- 2: without_start


def _stored() -> list[Inputs]:
    cases = []
    for k, (channels, alpha, t) in enumerate([(1, 0.1, 1), (2, 0.25, 3), (3, 0.1, 10)]):
        stats = torch.from_numpy(numbers(80 + k, 2, channels) / 4 + 1)
        cases.append({"stats": stats, "alpha": alpha, "t": t})
    return cases


def _without_start(
    stats: Tensor, alpha: float, t: int, start: Any = (0.0, 1.0), left: Any = None, divide: bool = True
) -> Tensor:
    """Statistics without their start, or with a part of the correction wrong."""
    weight = (1 - alpha) ** t if left is None else left(alpha, t)
    values = stats - weight * torch.tensor(start, dtype=stats.dtype)[:, None]
    return values / (1 - weight) if divide else values


def _start(**settings: Any) -> Any:
    return lambda stats, alpha, t: _without_start(stats, alpha, t, **settings)


TAKE_OUT = Exercise(
    title="Take the start out",
    asks="without_start(stats, alpha, t)",
    inputs=_stored,
    solution=_without_start,
    returns=("the statistics",),
    rtol=1e-6,
    mistakes=(
        Mistake(
            "weights do not add up to 1",
            "What is left has the total weight 1 - (1 - alpha)^t: divide by it.",
            _start(divide=False),
        ),
        Mistake(
            "start of the variances forgotten",
            "Adam's correction starts from zero; the variances start at 1, which has to be subtracted.",
            _start(start=(0.0, 0.0)),
        ),
        Mistake(
            "means and variances exchanged",
            "Row 0 holds the means, which start at 0; row 1 the variances, which start at 1.",
            _start(start=(1.0, 0.0)),
        ),
        Mistake("means started at 1", "Only the variances start at 1.", _start(start=(1.0, 1.0))),
        Mistake(
            "momentum reversed",
            "The old value keeps the weight 1 - alpha in each step, alpha weighs the new one.",
            _start(left=lambda alpha, t: alpha**t),
        ),
        Mistake(
            "one step too few",
            "After t updates the start has been multiplied by 1 - alpha t times.",
            _start(left=lambda alpha, t: (1 - alpha) ** (t + 1)),
        ),
        Mistake(
            "weight falls linearly",
            "Each step multiplies the weight of the start by 1 - alpha.",
            _start(left=lambda alpha, t: 1 - alpha * t / 2),
        ),
        Mistake(
            "nothing taken out", "The start has the weight (1 - alpha)^t.", lambda stats, alpha, t: stats
        ),
    ),
)


# --------------------------------------------------------------------------- 3: fold_forward


def _layers() -> list[Inputs]:
    cases = []
    for k, (rows, columns, eps) in enumerate([(1, 2, 0.1), (2, 2, 1e-5), (3, 5, 0.5)]):
        weight = numbers(90 + k, rows, columns)
        bias = numbers(100 + k, rows)
        mean, gamma, beta = numbers(110 + k, 3, columns)
        var = np.abs(numbers(120 + k, columns)) + 0.5
        given = {"weight": weight, "bias": bias, "mean": mean, "var": var}
        cases.append({**given, "gamma": gamma, "beta": beta, "eps": eps})
    return cases


def _fold(
    weight: Array, bias: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Array, Array]:
    scale = gamma / np.sqrt(var + eps)
    return weight * scale, bias + weight @ (beta - scale * mean)


def _fold_with(scale: Any = None, folded: Any = None) -> Any:
    """Fold with another scale, or another bias made from weight, bias, mean, scale and beta."""

    def wrong(
        weight: Array, bias: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float
    ) -> tuple[Array, Array]:
        s = scale(gamma, var, eps) if scale else gamma / np.sqrt(var + eps)
        b = folded(weight, bias, mean, s, beta) if folded else bias + weight @ (beta - s * mean)
        return weight * s, b

    return wrong


def _fold_rows(
    weight: Array, bias: Array, mean: Array, var: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Array, Array]:
    scale = gamma / np.sqrt(var + eps)
    return weight * scale[:, None], scale * (bias - mean) + beta


FOLD = Exercise(
    title="Fold forward",
    asks="fold_forward(weight, bias, mean, var, gamma, beta, eps)",
    inputs=_layers,
    solution=_fold,
    returns=("weight", "bias"),
    mistakes=(
        Mistake(
            "folded backward",
            "This is the rule for a norm *behind* the layer, which scales rows. Here columns are scaled.",
            _fold_rows,
        ),
        Mistake(
            "shift not multiplied by the weight",
            "The layer multiplies the whole output of the norm by W, also its constant part.",
            lambda weight, bias, mean, var, gamma, beta, eps: (
                weight * gamma / np.sqrt(var + eps),
                bias + (beta - gamma / np.sqrt(var + eps) * mean).sum(),
            ),
        ),
        Mistake(
            "scaled twice",
            "The shift meets the old weight; only x meets the scaled one.",
            _fold_with(folded=lambda weight, bias, mean, s, beta: bias + (weight * s) @ (beta - s * mean)),
        ),
        Mistake(
            "beta forgotten",
            "beta is a part of the layer's input: W times beta goes into the bias.",
            _fold_with(folded=lambda weight, bias, mean, s, beta: bias - weight @ (s * mean)),
        ),
        Mistake(
            "mean forgotten",
            "The norm subtracts the mean: minus W times the scaled mean goes into the bias.",
            _fold_with(folded=lambda weight, bias, mean, s, beta: bias + weight @ beta),
        ),
        Mistake(
            "mean not scaled",
            "The mean is subtracted before the scale acts, so it is scaled as well.",
            _fold_with(folded=lambda weight, bias, mean, s, beta: bias + weight @ (beta - mean)),
        ),
        Mistake(
            "sign flipped",
            "The scaled mean is subtracted from beta.",
            _fold_with(folded=lambda weight, bias, mean, s, beta: bias + weight @ (beta + s * mean)),
        ),
        Mistake(
            "bias forgotten",
            "The layer adds its own bias, too.",
            _fold_with(folded=lambda weight, bias, mean, s, beta: weight @ (beta - s * mean)),
        ),
        Mistake(
            "eps outside the root",
            "The divisor is the root of (variance + eps).",
            _fold_with(scale=lambda gamma, var, eps: gamma / (np.sqrt(var) + eps)),
        ),
        Mistake(
            "eps forgotten",
            "Add eps to the variance.",
            _fold_with(scale=lambda gamma, var, eps: gamma / np.sqrt(var)),
        ),
        Mistake(
            "variance instead of standard deviation",
            "Divide by the root of the variance.",
            _fold_with(scale=lambda gamma, var, eps: gamma / (var + eps)),
        ),
        Mistake(
            "gamma forgotten",
            "The scale is gamma over the root.",
            _fold_with(scale=lambda gamma, var, eps: 1 / np.sqrt(var + eps)),
        ),
    ),
)


# --------------------------------------------------------------------------- 4: pooled_variance


def _batches() -> list[Inputs]:
    shapes = [(2, 1), (3, 2), (4, 3)]
    return [
        {"means": numbers(130 + k, *shape), "variances": np.abs(numbers(140 + k, *shape)) + 0.1}
        for k, shape in enumerate(shapes)
    ]


POOLED = Exercise(
    title="A variance without independence",
    asks="pooled_variance(means, variances)",
    inputs=_batches,
    solution=lambda means, variances: variances.mean(0) + means.var(0),
    returns=("the variance",),
    mistakes=(
        Mistake(
            "variance between the batches forgotten",
            "The batches' means differ, too: add their variance.",
            lambda means, variances: variances.mean(0),
        ),
        Mistake(
            "variance within the batches forgotten",
            "Add the mean of the batches' variances.",
            lambda means, variances: means.var(0),
        ),
        Mistake(
            "standard deviation instead of variance",
            "Variances add up, standard deviations do not.",
            lambda means, variances: variances.mean(0) + means.std(0),
        ),
        Mistake(
            "standard deviations averaged",
            "Average the variances: the law of total variance is about squares.",
            lambda means, variances: np.sqrt(variances).mean(0) ** 2 + means.var(0),
        ),
        Mistake(
            "unbiased variance of the means",
            "The batches are all there are, not a sample of them: divide by their number.",
            lambda means, variances: variances.mean(0) + means.var(0, ddof=1),
        ),
        Mistake(
            "mean square of the means",
            "This takes the mean of the means for zero: subtract its square.",
            lambda means, variances: variances.mean(0) + (means**2).mean(0),
        ),
        Mistake(
            "variances summed",
            "The mean over the batches, not their sum.",
            lambda means, variances: variances.sum(0) + means.var(0),
        ),
        Mistake(
            "one number for all channels",
            "Each channel has its own variance: take means over the batches, axis 0.",
            lambda means, variances: variances.mean() + means.var(),
        ),
        Mistake(
            "wrong axis",
            "Batches are axis 0, channels axis 1.",
            lambda means, variances: variances.mean(1) + means.var(1),
        ),
    ),
)

EXERCISES = {1: TRANSLATE, 2: TAKE_OUT, 3: FOLD, 4: POOLED}
