"""Checked exercises of the chapter on group normalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bnbook.exercises._exercise import Exercise, Inputs, numbers


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


EXERCISES = {
    "y_by_hand": Exercise(
        title="By hand",
        asks="y, 4 channels of 2 positions",
        returns=("y",),
        rtol=0.003,
        hints=(
            "Two groups of two neighbouring channels: 1, 3, 5, 7 and 0, 0, 0, 4.",
            "The means are 4 and 1, the variances 5 and 3.",
        ),
        solution="""
groups = np.array([[1, 3, 5, 7], [0, 0, 0, 4]])
centred = groups - groups.mean(1, keepdims=True)
var = (centred**2).mean(1, keepdims=True)
y = (centred / np.sqrt(var)).reshape(4, 2)
""",
        slips="""
unbiased variance: The variance of a group divides by its number of values, 4.
    (centred**2).mean(1, keepdims=True) => (centred**2).sum(1, keepdims=True) / 3
layer norm: This is one group of all channels; the exercise has two groups.
    (1, keepdims=True) => ()
alternating groups: A group is made of neighbouring channels: the first two, then the last two.
    = ((np.array([[1, 3, 0, 0], [5, 7, 0, 4]]).T - [1, 4]) / np.sqrt([1.5, 6.5])).T[:, [[0, 1], [2, 3]]]
        .transpose(1, 0, 2).reshape(4, 2)
variance instead of standard deviation: Divide by the root of the variance.
    np.sqrt(var) => var
mean not subtracted: Subtract the mean of the group first.
    (centred / => (groups /
not scaled: Divide by the standard deviation of the group.
    / np.sqrt(var) =>
""",
    ),
    "group_norm_by_reshape": Exercise(
        title="Group norm from batch norm",
        asks="group_norm_by_reshape(x, num_groups, gamma, beta)",
        inputs=_images,
        uses={"F": F},
        observe=_output_and_gradient,
        returns=("y", "gradient of x"),
        rtol=1e-6,
        forbids={
            "another mean or variance": (
                "mean",
                "var",
                "std",
                "var_mean",
                "std_mean",
                "group_norm",
                "GroupNorm",
            )
        },
        hints=(
            "`F.batch_norm` has one mean for each index of axis 1, over all others. What has to stand there?",
            "Reshape to (1, N num_groups, -1), normalize in training mode, and reshape back.",
            "gamma and beta belong to channels: apply them afterwards, with the shape (C, 1, 1).",
        ),
        solution="""
def group_norm_by_reshape(x, num_groups, gamma, beta):
    sets = x.reshape(1, x.shape[0] * num_groups, -1)
    x_hat = F.batch_norm(sets, None, None, training=True).reshape(x.shape)
    return gamma[:, None, None] * x_hat + beta[:, None, None]
""",
        slips="""
statistics taken as constants: The output is right, but the gradient does not pass through mean and variance:
    no `detach`.
    F.batch_norm(sets, None, None, training=True) => ((sets - sets.detach().mean(2, True))
        / (sets.detach().var(2, correction=0, keepdim=True) + 1e-5) ** 0.5)
statistics shared by the batch: Every example has statistics of its own: the batch belongs into axis 1.
    (1, x.shape[0] * num_groups, -1) => (len(x), num_groups, -1)
batch norm: One set for each channel, over the batch: nothing was grouped.
    x.reshape(1, x.shape[0] * num_groups, -1) => x
instance norm: One set for each channel of an example: the channels of a group belong together.
    x.shape[0] * num_groups => x.shape[0] * x.shape[1]
layer norm: One set for each example: it has to be split into groups.
    x.shape[0] * num_groups => x.shape[0]
alternating groups: A group is made of neighbouring channels: 0 and 1, not 0 and num_groups.
    x.reshape(1, => x.reshape(len(x), -1, num_groups, *x.shape[2:]).transpose(1, 2).reshape(1,
    .reshape(x.shape) => .reshape(len(x), num_groups, -1, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
num_groups taken for the size of a group: It is the number of groups; each has C / num_groups channels.
    x.shape[0] * num_groups => x.shape[0] * (x.shape[1] // num_groups)
gamma and beta forgotten: Scale and shift come last, one of each a channel.
    gamma[:, None, None] * =>
    + beta[:, None, None] =>
gamma forgotten: Multiply by the gamma of the channel.
    gamma[:, None, None] * =>
beta forgotten: Add the beta of the channel.
    + beta[:, None, None] =>
gamma and beta along the last axis: An array of shape (C,) broadcasts along the last axis: give it the shape
    (C, 1, 1).
    [:, None, None] =>
another eps: Leave the default eps of 1e-5, which F.group_norm has, too.
    training=True => training=True, eps=1e-3
""",
    ),
    "dead_biases": None,
}
