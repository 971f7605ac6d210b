"""Checked exercises of the chapter on inference."""

from __future__ import annotations

import numpy as np
import torch

from bnbook.exercises._exercise import Exercise, Inputs, numbers


def _stored() -> list[Inputs]:
    cases = []
    for k, (channels, alpha, t) in enumerate([(1, 0.1, 1), (2, 0.25, 3), (3, 0.1, 10)]):
        stats = torch.from_numpy(numbers(80 + k, 2, channels) / 4 + 1)
        cases.append({"stats": stats, "alpha": alpha, "t": t})
    return cases


def _layers() -> list[Inputs]:
    cases = []
    for k, (rows, columns, eps) in enumerate([(1, 2, 0.1), (2, 2, 1e-5), (3, 5, 0.5)]):
        given = {"weight": numbers(90 + k, rows, columns), "bias": numbers(100 + k, rows)}
        mean, gamma, beta = numbers(110 + k, 3, columns)
        var = np.abs(numbers(120 + k, columns)) + 0.5
        cases.append({**given, "mean": mean, "var": var, "gamma": gamma, "beta": beta, "eps": eps})
    return cases


def _batches() -> list[Inputs]:
    shapes = [(2, 1), (3, 2), (4, 3)]
    return [
        {"means": numbers(130 + k, *shape), "variances": np.abs(numbers(140 + k, *shape)) + 0.1}
        for k, shape in enumerate(shapes)
    ]


EXERCISES = {
    "memory": Exercise(
        title="Translate a momentum",
        asks="memory(alpha)",
        inputs=lambda: [{"alpha": alpha} for alpha in (0.5, 0.1, 0.01, 0.001)],
        returns=("steps", "batches"),
        rtol=0,
        atol=1e-9,
        hints=(
            "After t steps the start has the weight (1 - alpha)^t.",
            "The batches older than k steps have, in the long run, the weight (1 - alpha)^k together.",
            "Take logarithms, and round up to the first whole number at which the condition holds.",
        ),
        solution="""
def memory(alpha):
    log = np.log(1 - alpha)
    forgotten = int(np.floor(np.log(0.01) / log)) + 1
    newest = int(np.ceil(np.log(0.1) / log))
    return forgotten, newest
""",
        slips="""
momentum reversed: In PyTorch the old value keeps the weight 1 - alpha; alpha weighs the new one.
    np.log(1 - alpha) => np.log(alpha)
not rounded: Steps are whole numbers: the first one at which the condition holds.
    int(np.floor(np.log(0.01) / log)) + 1 => np.log(0.01) / log
    int(np.ceil(np.log(0.1) / log)) => np.log(0.1) / log
one step too few: Round up: after the rounded-down number the condition does not hold yet.
    log)) + 1 => log))
    np.ceil => np.floor
90 % instead of the 10 % that are left: The newest k batches carry 1 - (1 - alpha)^k, so 10 % are left.
    np.log(0.1) => np.log(0.9)
99 % instead of 1 %: The weight of the start, (1 - alpha)^t, has to fall below 0.01.
    np.log(0.01) => np.log(0.99)
approximation for small alpha: log(1 - alpha) is about -alpha only for small alpha; use the logarithm itself.
    np.log(1 - alpha) => -alpha
""",
    ),
    "without_start": Exercise(
        title="Take the start out",
        asks="without_start(stats, alpha, t)",
        inputs=_stored,
        uses={"torch": torch},
        returns=("the statistics",),
        rtol=1e-6,
        hints=(
            "After t steps the start has the weight (1 - alpha)^t; subtract it with this weight.",
            "What is left has weights that add up to 1 - (1 - alpha)^t: divide by that.",
        ),
        solution="""
def without_start(stats, alpha, t):
    left = (1 - alpha) ** t
    start = torch.tensor([[0.0], [1.0]])
    return (stats - left * start) / (1 - left)
""",
        slips="""
weights do not add up to 1: What is left has the total weight 1 - (1 - alpha)^t, so divide by it.
    / (1 - left) =>
start of the variances forgotten: Adam's correction starts from zero; the variances start at 1.
    [1.0] => [0.0]
means and variances exchanged: Row 0 holds the means, which start at 0; row 1 the variances, from 1.
    [[0.0], [1.0]] => [[1.0], [0.0]]
means started at 1: Only the variances start at 1.
    [0.0] => [1.0]
momentum reversed: The old value keeps the weight 1 - alpha in each step, alpha weighs the new one.
    (1 - alpha) ** t => alpha**t
one step too few: After t updates the start has been multiplied by 1 - alpha t times.
    ** t => ** (t + 1)
weight falls linearly: Each step multiplies the weight of the start by 1 - alpha.
    (1 - alpha) ** t => 1 - alpha * t / 2
nothing taken out: The start has the weight (1 - alpha)^t.
    return => return stats + 0 *
""",
    ),
    "fold_forward": Exercise(
        title="Fold forward",
        asks="fold_forward(weight, bias, mean, var, gamma, beta, eps)",
        inputs=_layers,
        returns=("weight", "bias"),
        hints=(
            "At inference the norm is y = scale x + shift, with scale = gamma / sqrt(var + eps).",
            "Put it into z = W y + b: the scale meets the columns of W, and W times the shift joins b.",
        ),
        solution="""
def fold_forward(weight, bias, mean, var, gamma, beta, eps=1e-5):
    scale = gamma / np.sqrt(var + eps)
    return weight * scale, bias + weight @ (beta - scale * mean)
""",
        slips="""
folded backward: This is the rule for a norm *behind* the layer, which scales rows. Here columns are scaled.
    weight * scale, bias + weight @ (beta - scale * mean) =>
        weight * scale[:, None], scale * (bias - mean) + beta
shift not multiplied by the weight: The layer multiplies the whole output of the norm by W.
    weight @ (beta - scale * mean) => (beta - scale * mean).sum()
scaled twice: The shift meets the old weight; only x meets the scaled one.
    weight @ ( => (weight * scale) @ (
beta forgotten: beta is a part of the layer's input: W times beta goes into the bias.
    beta - scale * mean => -scale * mean
mean forgotten: The norm subtracts the mean: minus W times the scaled mean goes into the bias.
    - scale * mean =>
mean not scaled: The mean is subtracted before the scale acts, so it is scaled as well.
    - scale * mean => - mean
sign flipped: The scaled mean is subtracted from beta.
    beta - scale => beta + scale
bias forgotten: The layer adds its own bias, too.
    bias + weight => weight
eps outside the root: The divisor is the root of (variance + eps).
    np.sqrt(var + eps) => (np.sqrt(var) + eps)
eps forgotten: Add eps to the variance.
    var + eps => var
eps ignored: The function has an argument eps; use it instead of a fixed 1e-5.
    var + eps => var + 1e-5
variance instead of standard deviation: Divide by the root of the variance.
    np.sqrt(var + eps) => (var + eps)
root of the standard deviation: var is a variance: one root is enough.
    np.sqrt(var + eps) => np.sqrt(np.sqrt(var) + eps)
gamma forgotten: The scale is gamma over the root.
    scale = gamma => scale = 1
""",
    ),
    "pooled_variance": Exercise(
        title="A variance without independence",
        asks="pooled_variance(means, variances)",
        inputs=_batches,
        returns=("the variance",),
        hints=(
            "Two terms: the mean of the variances, and the variance of the means.",
            "Both run over the batches, axis 0, and the variance divides by their number.",
        ),
        solution="""
def pooled_variance(means, variances):
    return variances.mean(0) + means.var(0)
""",
        slips="""
variance between the batches forgotten: The batches' means differ, too: add their variance.
    + means.var(0) =>
variance within the batches forgotten: Add the mean of the batches' variances.
    variances.mean(0) + =>
standard deviation instead of variance: Variances add up, standard deviations do not.
    means.var(0) => means.std(0)
standard deviations averaged: Average the variances: the law of total variance is about squares.
    variances.mean(0) => np.sqrt(variances).mean(0) ** 2
unbiased variance of the means: The batches are all there are, not a sample: divide by their number.
    means.var(0) => means.var(0, ddof=1)
mean square of the means: This takes the mean of the means for zero: subtract its square.
    means.var(0) => (means**2).mean(0)
variances summed: The mean over the batches, not their sum.
    variances.mean(0) => variances.sum(0)
one number for all channels: Each channel has its own variance: take means over the batches, axis 0.
    (0) => ()
wrong axis: Batches are axis 0, channels axis 1.
    (0) => (1)
""",
    ),
}
