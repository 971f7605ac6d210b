"""Checked exercises of the chapter on adaptation."""

from __future__ import annotations

import torch

from bnbook.exercises._exercise import Exercise, Inputs, numbers


def _heaps() -> list[Inputs]:
    names = ("mean_s", "var_s", "mean_B", "var_B", "w")
    cases = [(0.5, 1.2, 2.0, 0.7, 0.4), (1.0, 2.0, -0.5, 0.5, 0.75), (-2.0, 0.3, 0.25, 4.0, 0.2)]
    return [dict(zip(names, case, strict=True)) for case in cases]


def _scores() -> list[Inputs]:
    shapes = [(1, 2), (2, 3), (4, 5)]
    return [{"z": torch.from_numpy(numbers(240 + k, *shape))} for k, shape in enumerate(shapes)]


EXERCISES = {
    "entropy_gradient": Exercise(
        title="Down the entropy",
        asks="entropy_gradient(z)",
        inputs=_scores,
        returns=("the gradient",),
        forbids={"autograd": ("grad", "autograd", "backward", "requires_grad_")},
        invariants={"the gradient should sum to zero in each row": lambda at: at["the gradient"].sum(-1)},
        hints=(
            "The derivative of p_j by z_k is p_j (delta_jk - p_k).",
            "Everything that does not depend on j collects to the entropy of the row.",
            "`z.log_softmax(-1)` is log p.",
        ),
        solution="""
def entropy_gradient(z):
    log_p = z.log_softmax(-1)
    H = -(log_p.exp() * log_p).sum(-1, keepdim=True)
    return -log_p.exp() * (log_p + H)
""",
        slips="""
sign flipped: H = -sum p log p has a minus of its own.
    return -log_p => return log_p
gradient with respect to p: -(log p + 1) is that; the way through the softmax is missing.
    -log_p.exp() * (log_p + H) => -(log_p + 1)
normalization of the softmax forgotten: Every p depends on every z: the softmax subtracts the mean of
    log p + 1 under p.
    log_p + H => log_p + 1
H forgotten: p log p is only one part; the other classes give way, and that adds p H.
    log_p + H => log_p
mean over the examples: Each row is the gradient of its own entropy; do not divide by N.
    (log_p + H) => (log_p + H) / len(z)
""",
    ),
    "heap_variance": Exercise(
        title="The missing term",
        asks="heap_variance(mean_s, var_s, mean_B, var_B, w)",
        inputs=_heaps,
        returns=("the variance",),
        hints=(
            "The law of total variance: the mean of the variances, plus the variance of the means.",
            "Two means with the weights w and 1 - w scatter by w (1 - w) times their squared distance.",
        ),
        solution="""
def heap_variance(mean_s, var_s, mean_B, var_B, w):
    return w * var_s + (1 - w) * var_B + w * (1 - w) * (mean_s - mean_B) ** 2
""",
        slips="""
blend of the variances: That is the blended variance of the chapter; the scatter between the means is missing.
    + w * (1 - w) * (mean_s - mean_B) ** 2 =>
w of the batch: w is the weight of the source, 1 - w that of the batch.
    w * var_s + (1 - w) * var_B => (1 - w) * var_s + w * var_B
distance not weighted: The squared distance of the means counts with w (1 - w).
    w * (1 - w) * =>
distance not squared: Variances add up squares: the distance of the means enters squared.
    (mean_s - mean_B) ** 2 => abs(mean_s - mean_B)
distance weighted with w alone: Each part lies off the common mean: w times one square plus 1 - w times the
    other is w (1 - w).
    w * (1 - w) * => w *
independent sum: w² belongs to the variance of a weighted sum of two variables; a heap holds one or the other.
    = lambda mean_s, var_s, mean_B, var_B, w: w**2 * var_s + (1 - w) ** 2 * var_B
""",
    ),
    "undo_the_inversion": None,
    "too_good_a_test": None,
}
