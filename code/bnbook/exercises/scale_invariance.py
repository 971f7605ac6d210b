"""Checked exercises of the chapter on scale invariance."""

from bnbook.exercises._exercise import Exercise

EXERCISES = {
    "twin_rate": Exercise(
        title="Adam",
        asks="twin_rate(a, lr)",
        inputs=lambda: [{"a": a, "lr": lr} for a, lr in ((3.0, 0.5), (5.0, 0.01), (0.5, 0.1))],
        returns=("the rate",),
        hints=(
            "The gradient at a w_0 is that at w_0 divided by a. What does Adam make of a factor?",
            "The weights are a times as long, so the steps have to be, too.",
        ),
        solution="""
def twin_rate(a, lr):
    return a * lr
""",
        slips="""
rate of SGD: SGD's step shrinks with the gradient, by 1/a; Adam's does not see a factor of it.
    a * lr => a**2 * lr
same rate: The weights are a times as long, so the steps have to be, too.
    a * lr => lr
inverted: Longer weights need longer steps: the rate grows with a.
    a * lr => lr / a
root of a: Adam divides by the root of the *squared* gradient: a factor of the gradient is gone.
    a * lr => np.sqrt(a) * lr
""",
    ),
    "finite": Exercise(
        title="A finite batch",
        asks="finite(m)",
        inputs=lambda: [{"m": m} for m in (4, 8, 16)],
        returns=("the factor",),
        hints=(
            "Compute r, e, v and q in this order, one line each, and then the ratio.",
            "At m = 4, r = -1/3. The factor is the root of the ratio.",
        ),
        solution="""
def finite(m):
    r = -1 / (m - 1)
    e = 2 / np.pi * (np.sqrt(1 - r * r) + r * np.arcsin(r))
    v = 0.5 - (1 / m + (m - 1) / m * e) / 4
    q = 0.25 + np.arcsin(r) / (2 * np.pi)
    ratio = (m - 1) / ((m - 3) * v) * ((m - 1) / (2 * m) + q / m) - 1 / (m - 3)
    return np.sqrt(ratio)
""",
        slips="""
root forgotten: The factor is for the length; the formula is for its square.
    np.sqrt(ratio) => ratio
r positive: Two values of a unit sum to less than zero on average: r is negative.
    r = -1 => r = 1
r with m for m - 1: r = -1 / (m - 1).
    r = -1 / (m - 1) => r = -1 / m
last term forgotten: 1 / (m - 3) is subtracted at the end.
    - 1 / (m - 3) =>
last term added: 1 / (m - 3) is subtracted at the end.
    - 1 / (m - 3) => + 1 / (m - 3)
v of an infinite batch: v depends on m as well.
    0.5 - (1 / m + (m - 1) / m * e) / 4 => 0.5 - 0.5 / np.pi
1/m in v forgotten: A value and itself contribute 1/m to the mean of the products.
    1 / m + (m - 1) / m * e => (m - 1) / m * e
q = 1/4: Two values of a unit are correlated: q depends on r.
    + np.arcsin(r) / (2 * np.pi) =>
limit for all m: The factor has to depend on m.
    = lambda m: np.sqrt(0.5 / (0.5 - 0.5 / np.pi))
""",
    ),
}
