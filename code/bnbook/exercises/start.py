"""Checked exercises of the page that has the subject in half an hour."""

from __future__ import annotations

from bnbook.exercises._exercise import Exercise, Inputs, numbers


def _statistics() -> list[Inputs]:
    cases = []
    for k, (units, eps) in enumerate([(2, 0.1), (3, 1e-5), (5, 0.5)]):
        gamma, beta, mean, scale = numbers(k, 4, units)
        cases.append({"gamma": gamma, "beta": beta, "mean": mean, "var": scale**2 + 0.1, "eps": eps})
    return cases


EXERCISES = {
    "x_hat": Exercise(
        title="By hand",
        asks="x_hat, four numbers",
        returns=("x_hat",),
        rtol=0.005,
        hints=(
            "First the mean, then the mean of the squared distances from it: that is the variance.",
            "The distances are -2, 0, 0 and 2. Divide each by the root of the variance.",
        ),
        solution="""
x = np.array([2, 4, 4, 6])
centred = x - x.mean()
x_hat = centred / np.sqrt((centred**2).mean())
""",
        slips="""
unbiased variance: The variance divides the sum of the squares by m = 4, not by 3.
    (centred**2).mean() => ((centred**2).sum() / 3)
variance instead of standard deviation: Divide by the root of the variance.
    np.sqrt((centred**2).mean()) => (centred**2).mean()
not scaled: This is x minus its mean; divide by the standard deviation.
    / np.sqrt((centred**2).mean()) =>
not centred: Subtract the mean first.
    x_hat = centred / => x_hat = x /
""",
    ),
    "fold": Exercise(
        title="The layer in evaluation mode",
        asks="fold(gamma, beta, mean, var, eps)",
        inputs=_statistics,
        returns=("a", "c"),
        hints=(
            "Write y = gamma * (x - mean) / sqrt(var + eps) + beta, and collect what multiplies x.",
            "What is left when x = 0 is c.",
        ),
        solution="""
def fold(gamma, beta, mean, var, eps):
    a = gamma / np.sqrt(var + eps)
    c = beta - a * mean
    return a, c
""",
        slips="""
variance instead of standard deviation: Divide by the root of var + eps.
    np.sqrt(var + eps) => (var + eps)
eps outside the root: eps stands under the root.
    np.sqrt(var + eps) => (np.sqrt(var) + eps)
eps forgotten: Add eps to the variance.
    var + eps => var
gamma forgotten: The factor of x contains gamma.
    gamma / => 1 /
mean forgotten: At x = 0 the output is beta - a * mean, not beta.
    - a * mean =>
sign of the mean: The mean is subtracted.
    beta - a => beta + a
mean without its factor: The mean is multiplied by a, as x is.
    - a * mean => - mean
""",
    ),
}
