"""Checked exercises of the chapter on saturation."""

from bnbook.exercises._exercise import Exercise

EXERCISES = {
    "factors": Exercise(
        title="Wide, narrow, wide",
        asks="three factors",
        returns=("the factor with 2 / n_in", "that with 2 / n_out", "that with the mean"),
        rtol=0,
        atol=0.002,
        hints=(
            "Each layer multiplies the square of the length by n_in / 2 times the variance of its weights.",
            "From layer 20 to layer 1 these are 19 layers: ten with n_in = 64, nine with n_in = 256.",
        ),
        solution="""
squares = np.array([1, 64 / 256, (64 / 160) ** 10 * (256 / 160) ** 9])
factors = np.sqrt(squares)
""",
        slips="""
squares of the factors: These are for the square of the length: take the root.
    np.sqrt(squares) => squares
first two exchanged: A layer multiplies the square by n_in / 2 times the variance.
    1, 64 / 256 => 64 / 256, 1
inverted: From the output down to layer 1, not the other way.
    np.sqrt(squares) => 1 / np.sqrt(squares)
ten pairs of layers: Between layer 20 and layer 1 there are 19 layers: ten narrow ones and nine wide ones.
    = [1, 1, 0.8**10]
mean taken for neutral: The mean of two widths is above their geometric mean.
    = [1, 0.5, 1]
""",
    ),
    "leaky_gain": Exercise(
        title="A leak",
        asks="leaky_gain(a)",
        inputs=lambda: [{"a": a} for a in (0.0, 1.0, 0.5, 0.01)],
        returns=("the gain",),
        hints=(
            "Half of the second moment comes from each side; the negative side enters with a squared.",
            "A layer multiplies the second moment by (1 + a^2) / 2 times the variance of its weights.",
        ),
        solution="""
def leaky_gain(a):
    return np.sqrt(2 / (1 + a**2))
""",
        slips="""
variance instead of standard deviation: The gain multiplies a standard deviation: take the root.
    np.sqrt(2 / (1 + a**2)) => 2 / (1 + a**2)
slope not squared: A second moment is kept: the slope enters squared.
    a**2 => a
gain of the ReLU: The negative half contributes as well.
    1 + a**2 => 1
both halves counted fully: Only half of the inputs are negative, and half are positive.
    2 / ( => 1 / (
gain that is kept to be inverted: This is what a layer loses: the gain is one over it.
    2 / (1 + a**2) => (1 + a**2) / 2
negative half subtracted: Squares add up, also those of the negative half.
    1 + a => 1 - a
mean instead of second moment: The second moment is kept, not the mean.
    np.sqrt(2 / (1 + a**2)) => 2 / (1 + a)
""",
    ),
}
