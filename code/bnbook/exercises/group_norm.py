"""Checked exercises of the chapter on group normalization."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bnbook.exercises._engine import Exercise, Inputs, Mistake, numbers

# --------------------------------------------------------------------------- 1: on paper

_FIRST, _SECOND = np.array([-3, -1, 1, 3]) / np.sqrt(5), np.array([-1, -1, -1, 3]) / np.sqrt(3)

BY_HAND = Exercise(
    title="By hand",
    asks="y, 4 channels of 2 positions",
    solution=np.concatenate([_FIRST, _SECOND]).reshape(4, 2),
    rtol=0.003,
    returns=("y",),
    mistakes=(
        Mistake(
            "unbiased variance",
            "The variance of a group divides by its number of values, 4.",
            np.concatenate([np.sqrt(3 / 4) * _FIRST, np.sqrt(3 / 4) * _SECOND]).reshape(4, 2),
        ),
        Mistake(
            "layer norm",
            "This is one group of all channels; the exercise has two groups.",
            ((np.array([1, 3, 5, 7, 0, 0, 0, 4]) - 2.5) / 2.5).reshape(4, 2),
        ),
        Mistake(
            "alternating groups",
            "A group is made of neighbouring channels: the first two, then the last two.",
            np.stack(
                [
                    (np.array([1, 3]) - 1) / np.sqrt(1.5),
                    (np.array([5, 7]) - 4) / np.sqrt(6.5),
                    (np.array([0, 0]) - 1) / np.sqrt(1.5),
                    (np.array([0, 4]) - 4) / np.sqrt(6.5),
                ]
            ),
        ),
        Mistake(
            "variance instead of standard deviation",
            "Divide by the root of the variance.",
            np.concatenate([np.array([-3, -1, 1, 3]) / 5, np.array([-1, -1, -1, 3]) / 3]).reshape(4, 2),
        ),
        Mistake(
            "mean not subtracted",
            "Subtract the mean of the group first.",
            np.concatenate(
                [np.array([1, 3, 5, 7]) / np.sqrt(5), np.array([0, 0, 0, 4]) / np.sqrt(3)]
            ).reshape(4, 2),
        ),
        Mistake(
            "not scaled",
            "Divide by the standard deviation of the group.",
            [[-3, -1], [1, 3], [-1, -1], [-1, 3]],
        ),
    ),
)


# --------------------------------------------------------------------------- 2: group_norm_by_reshape


def _images() -> list[Inputs]:
    cases = []
    for k, (shape, groups) in enumerate(
        [((1, 2, 1, 2), 1), ((2, 2, 2, 2), 2), ((2, 6, 2, 3), 3), ((3, 4, 2, 2), 2), ((2, 2, 1, 2), 1)]
    ):
        x = torch.from_numpy(numbers(180 + k, *shape) + 1).requires_grad_()
        gamma, beta = torch.from_numpy(numbers(190 + k, 2, shape[1]))
        cases.append({"x": x, "num_groups": groups, "gamma": gamma, "beta": beta})
    return cases


def _output_and_gradient(y: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """The output, and the gradient of a weighted sum of it with respect to x."""
    weights = torch.from_numpy(numbers(200, *y.shape))
    return y, torch.autograd.grad(y, inputs["x"], weights)[0]


def _detached(x: Tensor, num_groups: int, gamma: Tensor, beta: Tensor) -> Tensor:
    sets = x.reshape(x.shape[0] * num_groups, -1)
    mean, var = sets.mean(1, keepdim=True).detach(), sets.var(1, keepdim=True, correction=0).detach()
    x_hat = ((sets - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
    return gamma[:, None, None] * x_hat + beta[:, None, None]


def _by_reshape(
    x: Tensor,
    num_groups: int,
    gamma: Tensor,
    beta: Tensor,
    *,
    sets: Any = None,
    back: Any = None,
    eps: float = 1e-5,
    affine: Any = None,
) -> Tensor:
    """Group norm, or a variant with other sets, another way back, or another scale and shift."""
    grouped = sets(x, num_groups) if sets else x.reshape(1, x.shape[0] * num_groups, -1)
    x_hat = F.batch_norm(grouped, None, None, training=True, eps=eps)
    x_hat = back(x_hat, x, num_groups) if back else x_hat.reshape(x.shape)
    return affine(x_hat, gamma, beta) if affine else gamma[:, None, None] * x_hat + beta[:, None, None]


def _reshaped(**settings: Any) -> Any:
    return lambda x, num_groups, gamma, beta: _by_reshape(x, num_groups, gamma, beta, **settings)


def _alternating(x: Tensor, num_groups: int) -> Tensor:
    return x.reshape(len(x), -1, num_groups, *x.shape[2:]).transpose(1, 2).reshape(1, len(x) * num_groups, -1)


def _back_from_alternating(x_hat: Tensor, x: Tensor, num_groups: int) -> Tensor:
    inner = x_hat.reshape(len(x), num_groups, -1, *x.shape[2:])
    return inner.transpose(1, 2).reshape(x.shape)


FROM_BATCH_NORM = Exercise(
    title="Group norm from batch norm",
    asks="group_norm_by_reshape(x, num_groups, gamma, beta)",
    inputs=_images,
    solution=lambda x, num_groups, gamma, beta: F.group_norm(x, num_groups, gamma, beta),
    observe=_output_and_gradient,
    returns=("y", "gradient of x"),
    rtol=1e-6,
    mistakes=(
        Mistake(
            "statistics taken as constants",
            "The output is right, but the gradient does not pass through mean and variance: no `detach`.",
            _detached,
        ),
        Mistake(
            "statistics shared by the batch",
            "Every example has statistics of its own: the batch belongs into the channel axis of batch_norm.",
            _reshaped(sets=lambda x, groups: x.reshape(len(x), groups, -1)),
        ),
        Mistake(
            "batch norm",
            "One set for each channel, over the batch: nothing was grouped.",
            _reshaped(sets=lambda x, groups: x),
        ),
        Mistake(
            "instance norm",
            "One set for each channel of an example: the channels of a group belong together.",
            _reshaped(sets=lambda x, groups: x.reshape(1, x.shape[0] * x.shape[1], -1)),
        ),
        Mistake(
            "layer norm",
            "One set for each example: it has to be split into groups.",
            _reshaped(sets=lambda x, groups: x.reshape(1, len(x), -1)),
        ),
        Mistake(
            "alternating groups",
            "A group is made of neighbouring channels: 0 and 1, not 0 and num_groups.",
            _reshaped(sets=_alternating, back=_back_from_alternating),
        ),
        Mistake(
            "num_groups taken for the size of a group",
            "num_groups is the number of groups; each has C / num_groups channels.",
            lambda x, num_groups, gamma, beta: F.group_norm(x, x.shape[1] // num_groups, gamma, beta),
        ),
        Mistake(
            "gamma and beta forgotten",
            "Scale and shift come last, one of each a channel.",
            _reshaped(affine=lambda x_hat, gamma, beta: x_hat),
        ),
        Mistake(
            "gamma forgotten",
            "Multiply by the gamma of the channel.",
            _reshaped(affine=lambda x_hat, gamma, beta: x_hat + beta[:, None, None]),
        ),
        Mistake(
            "beta forgotten",
            "Add the beta of the channel.",
            _reshaped(affine=lambda x_hat, gamma, beta: gamma[:, None, None] * x_hat),
        ),
        Mistake(
            "gamma and beta along the last axis",
            "An array of shape (C,) broadcasts along the last axis: give it the shape (C, 1, 1).",
            _reshaped(affine=lambda x_hat, gamma, beta: gamma * x_hat + beta),
        ),
        Mistake(
            "another eps", "Leave the default eps of 1e-5, which F.group_norm has, too.", _reshaped(eps=1e-3)
        ),
    ),
)

EXERCISES = {1: BY_HAND, 2: FROM_BATCH_NORM}
