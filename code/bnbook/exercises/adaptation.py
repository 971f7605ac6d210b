"""Checked exercises of the chapter on adaptation."""

from __future__ import annotations

from bnbook.exercises._exercise import Exercise, Inputs


def _heaps() -> list[Inputs]:
    names = ("mean_s", "var_s", "mean_B", "var_B", "w")
    cases = [(0.5, 1.2, 2.0, 0.7, 0.4), (1.0, 2.0, -0.5, 0.5, 0.75), (-2.0, 0.3, 0.25, 4.0, 0.2)]
    return [dict(zip(names, case, strict=True)) for case in cases]


EXERCISES = {
    "too_good_a_test": None,
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
}
