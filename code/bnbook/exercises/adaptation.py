"""Checked exercises of the chapter on adaptation."""

from __future__ import annotations

import torch
from torch import Tensor

from bnbook.adaptation import entropy
from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

# --------------------------------------------------------------------------- 1: heap_variance


def _heaps() -> list[Inputs]:
    names = ("mean_s", "var_s", "mean_B", "var_B", "w")
    cases = [(0.0, 1.0, 2.0, 1.0, 0.5), (1.0, 2.0, -0.5, 0.5, 0.75), (-2.0, 0.3, 0.0, 4.0, 0.2)]
    return [dict(zip(names, case, strict=True)) for case in cases]


def _between(mean_s: float, mean_B: float, w: float) -> float:
    return w * (1 - w) * (mean_s - mean_B) ** 2


def _inside(var_s: float, var_B: float, w: float) -> float:
    return w * var_s + (1 - w) * var_B


_HEAP = Exercise(
    title="The missing term",
    asks="heap_variance(mean_s, var_s, mean_B, var_B, w)",
    inputs=_heaps,
    returns=("the variance",),
    solution=lambda mean_s, var_s, mean_B, var_B, w: _inside(var_s, var_B, w) + _between(mean_s, mean_B, w),
    mistakes=(
        Mistake(
            "blend of the variances",
            "That is the blended variance of the chapter; the scatter between the two means is missing.",
            lambda mean_s, var_s, mean_B, var_B, w: _inside(var_s, var_B, w),
        ),
        Mistake(
            "w of the batch",
            "w is the weight of the source, 1 - w that of the batch.",
            lambda mean_s, var_s, mean_B, var_B, w: (
                _inside(var_s, var_B, 1 - w) + _between(mean_s, mean_B, w)
            ),
        ),
        Mistake(
            "distance not weighted",
            "The squared distance of the means counts with w (1 - w).",
            lambda mean_s, var_s, mean_B, var_B, w: _inside(var_s, var_B, w) + (mean_s - mean_B) ** 2,
        ),
        Mistake(
            "distance not squared",
            "Variances add up squares: the distance of the means enters squared.",
            lambda mean_s, var_s, mean_B, var_B, w: (
                _inside(var_s, var_B, w) + w * (1 - w) * abs(mean_s - mean_B)
            ),
        ),
        Mistake(
            "distance weighted with w alone",
            "Each part lies off the common mean: w times one square plus 1 - w times the other is w (1 - w).",
            lambda mean_s, var_s, mean_B, var_B, w: _inside(var_s, var_B, w) + w * (mean_s - mean_B) ** 2,
        ),
        Mistake(
            "independent sum",
            "w² belongs to the variance of a weighted sum of two variables; a heap holds one or the other.",
            lambda mean_s, var_s, mean_B, var_B, w: w**2 * var_s + (1 - w) ** 2 * var_B,
        ),
    ),
)


# --------------------------------------------------------------------------- 2: entropy_gradient


def _scores() -> list[Inputs]:
    return [
        {"z": torch.from_numpy(numbers(240 + k, *shape))} for k, shape in enumerate([(1, 2), (2, 3), (4, 5)])
    ]


def _gradient(z: Tensor, *, plus: float = 0.0, sign: float = -1.0, by: int = 1) -> Tensor:
    """-p (log p + H + plus), with the sign, divided by `by`."""
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    return sign * p * (log_p + entropy(z)[:, None] + plus) / by


_GRADIENT = Exercise(
    title="Down the entropy",
    asks="entropy_gradient(z)",
    inputs=_scores,
    returns=("the gradient",),
    solution=lambda z: _gradient(z),
    mistakes=(
        Mistake(
            "sign flipped",
            "H = -sum p log p has a minus of its own.",
            lambda z: _gradient(z, sign=1.0),
        ),
        Mistake(
            "gradient with respect to p",
            "-(log p + 1) is the gradient with respect to p; the way through the softmax is missing.",
            lambda z: -(z.log_softmax(-1) + 1),
        ),
        Mistake(
            "normalization of the softmax forgotten",
            "Every p depends on every z: the softmax subtracts the mean of log p + 1 under p.",
            lambda z: -z.softmax(-1) * (z.log_softmax(-1) + 1),
        ),
        Mistake(
            "H forgotten",
            "p log p is only one part; the other classes give way, and that adds p H.",
            lambda z: -z.softmax(-1) * z.log_softmax(-1),
        ),
        Mistake(
            "mean over the examples",
            "Each row is the gradient of its own entropy; do not divide by N.",
            lambda z: _gradient(z, by=len(z)),
        ),
    ),
)

EXERCISES = {1: _HEAP, 2: _GRADIENT}
