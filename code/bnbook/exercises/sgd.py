"""Checked exercises of the chapter on stochastic gradient descent."""

from bnbook.exercises._exercise import Exercise

EXERCISES = {
    "iterations": Exercise(
        title="How many updates?",
        asks="three numbers of iterations",
        returns=("(a)", "(b) kept", "(b) dropped"),
        hints=(
            "An iteration is one mini-batch. Count those of one epoch first, then multiply.",
            "2,000 / 300 is no whole number: kept rounds it up, dropped rounds it down, in every epoch.",
        ),
        solution="""
M, epochs = 2000, 20
iterations = [M // 500 * epochs, math.ceil(M / 300) * epochs, M // 300 * epochs]
""",
        slips="""
iterations of one epoch: Multiply by the 20 epochs.
    * epochs =>
epochs instead of iterations: An epoch is a pass over all examples.
    = [20, 20, 20]
examples instead of iterations: An iteration is one mini-batch, one update.
    = [40_000, 40_000, 36_000]
short batch once instead of in every epoch: Every epoch shuffles anew and ends with a short batch of its own.
    = [80, 134, 133]
fractions of an iteration: There is no 6.67th mini-batch in an epoch.
    = [80, 400 / 3, 400 / 3]
""",
    ),
    "batch_size": Exercise(
        title="The price of half the noise",
        asks="the batch size N",
        returns=("N",),
        rtol=0.003,
        hints=(
            "Half of the standard deviation is a quarter of the variance.",
            "Write the variance without replacement at N, and at 100; the first is a quarter of the second.",
        ),
        solution="""
M, part = 1000, 1 / 4
variance = (M - 100) / (M - 1) / 100
N = M / (part * variance * (M - 1) + 1)
""",
        slips="""
drawn with replacement: Without replacement the factor (M - N) / (M - 1) helps: fewer than 400 are enough.
    = 400
half the variance: Half of the standard deviation is a quarter of the variance.
    1 / 4 => 1 / 2
half the variance, with replacement: A quarter of the variance is asked, and without replacement there is
    another factor.
    = 200
twice the noise: This has twice the standard deviation of N = 100.
    1 / 4 => 4
""",
    ),
    "rate_over_batch_size": None,
}
