"""Checked exercises of the chapter on stochastic gradient descent."""

from __future__ import annotations

from bnbook.exercises._engine import Exercise, Mistake

EXERCISES = {
    1: Exercise(
        title="How many updates?",
        asks="three numbers of iterations",
        solution=[80, 140, 120],
        returns=(
            "the number of iterations in (a)",
            "that of (b), last one kept",
            "that of (b), last one dropped",
        ),
        mistakes=(
            Mistake("iterations of one epoch", "Multiply by the 20 epochs.", [4, 7, 6]),
            Mistake("epochs instead of iterations", "An epoch is a pass over all examples.", [20, 20, 20]),
            Mistake(
                "examples instead of iterations",
                "An iteration is one mini-batch, one update.",
                [40_000, 40_000, 36_000],
            ),
            Mistake(
                "kept and dropped exchanged", "With the short batch kept there are more.", [80, 120, 140]
            ),
            Mistake(
                "short batch once instead of in every epoch",
                "Every epoch shuffles anew and ends with a short batch of its own.",
                [80, 134, 133],
            ),
            Mistake(
                "fractions of an iteration",
                "There is no 6.67th mini-batch in an epoch.",
                [80, 400 / 3, 400 / 3],
            ),
        ),
    ),
    2: Exercise(
        title="The price of half the noise",
        asks="the batch size N",
        solution=4000 / 13,
        rtol=0.003,
        returns=("N",),
        mistakes=(
            Mistake(
                "drawn with replacement",
                "Without replacement the factor (M - N) / (M - 1) helps: fewer than 400 are enough.",
                400,
            ),
            Mistake(
                "half the variance",
                "Half of the standard deviation is a quarter of the variance.",
                2000 / 11,
            ),
            Mistake(
                "half the variance, with replacement",
                "A quarter of the variance is asked, and without replacement there is another factor.",
                200,
            ),
            Mistake("twice the noise", "This has twice the standard deviation of N = 100.", 1000 / 37),
        ),
    ),
}
